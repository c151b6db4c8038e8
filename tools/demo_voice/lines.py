"""What the demo, the README and the documents let the voice say, sentence by sentence: it must say these well."""

import re
from pathlib import Path

from demo import STREAMED, WHOLE

LINES = (
    *(sentence for line in (WHOLE, STREAMED) for sentence in re.split(r"(?<=[.]) ", line)),
    "Hello from Triton.",
    "Hello from the other client.",
    "Hello.",
    "Hello there.",
    "Hello in another voice.",
    "Hello, this is Anna.",
    "The first sound comes at once.",
    "Some reference clip.",
    "The line that sounds wrong.",
    "It was a bright cold day in April.",
    "Good morning.",
    "Good evening.",
    "One.",
    "Two.",
)

PAGE = Path(__file__).with_name("page.txt").read_text(encoding="utf-8")
"""3,000 characters of prose, written for this."""
