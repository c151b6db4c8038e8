"""HTTP gateway of a chatterbox-triton server: OpenAI's speech API, the routes of other Chatterbox servers, a page."""
