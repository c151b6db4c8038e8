"""What the demo, the README and the documents let the voice say, sentence by sentence: it must say these well."""

import re
from pathlib import Path

from demo import STREAMED, WHOLE

LINES = (
    *(sentence for line in (WHOLE, STREAMED) for sentence in re.split(r"(?<=[.]) ", line)),
    "Hello from the server.",
    "Hello from the other side.",
    "Hello from the python client.",
    "This is another voice.",
    "The same words in another voice.",
    "The first sound comes at once.",
    "This is a short clip.",
    "The line that sounds wrong.",
    "It was a cold day in the middle of winter.",
    "Good morning.",
    "Good evening.",
    "The first one.",
    "The second one.",
)

PAGE = Path(__file__).with_name("page.txt").read_text(encoding="utf-8")
"""3,000 characters of prose, written for this."""
