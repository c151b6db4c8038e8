"""English sentences of about a thousand words, drawn from a grammar: what the demo voice is taught to say."""

from __future__ import annotations

import random
import re

PEOPLE = (
    "man woman boy girl king queen doctor teacher student friend brother sister mother father child farmer driver "
    "writer artist captain soldier neighbor customer manager lawyer nurse painter singer baker judge pilot sailor "
    "stranger visitor worker guest player leader scientist engineer uncle aunt cousin daughter son wife husband "
    "family team crowd people children"
).split()
THINGS = (
    "book table chair letter story song picture phone train bus ship boat plane box bag coat hat shoe ball clock "
    "computer machine test question answer key ring bottle glass cup plate knife spoon lamp mirror map ticket paper "
    "pencil camera radio basket blanket candle rope wheel engine hammer ladder guitar piano drum flag gift package "
    "message report plan project idea problem secret price list page word name sentence lesson game dream bicycle "
    "newspaper dinner breakfast meal cake sandwich apple orange potato egg shirt dress pocket umbrella telephone "
    "kitchen carpet curtain pillow"
).split()
ANIMALS = "dog cat bird horse fish cow sheep rabbit mouse lion tiger bear wolf fox duck chicken bee snake".split()
NATURE = (
    "tree river mountain forest field garden lake sea ocean island beach valley hill desert sky sun moon star cloud "
    "wind storm stone flower leaf grass snow rain fire"
).split()
PLACES = (
    "house road school garden kitchen city town village farm street bridge market shop room window door station "
    "hotel office library hospital church museum theater park airport harbor factory castle restaurant river lake "
    "beach forest mountain field corner building university bank store cabin tower square hall"
).split()
MASS = (
    "water coffee tea bread music paper money light milk sugar salt rice butter cheese meat fruit wood gold silver "
    "glass sand smoke time work help news advice air food soup juice honey"
).split()
ADJ = (
    "old new big small red blue green black white happy little good cold warm long short dark quiet young strong "
    "soft heavy fresh clean bright brown yellow empty broken famous simple strange gentle beautiful large great "
    "tall wide deep narrow early late clear dry wet hot cool rich poor kind brave clever honest busy tired hungry "
    "angry sad proud careful important different difficult easy expensive cheap perfect ancient modern silent loud "
    "sweet bitter round square flat smooth rough sharp thick thin wooden golden lovely pretty wonderful terrible "
    "dangerous safe possible special private public natural common final whole"
).split()
FEEL = (
    "happy sad tired hungry angry proud careful busy ready late early alone afraid sure sorry glad cold warm quiet "
    "sick well free lucky famous rich poor wrong right"
).split()
# base, past, ends in -ing
VT = [
    tuple(v.split("/"))
    for v in (
        "see/saw find/found take/took buy/bought sell/sold open/opened close/closed carry/carried watch/watched "
        "follow/followed paint/painted clean/cleaned move/moved love/loved want/wanted need/needed make/made "
        "hold/held lose/lost keep/kept bring/brought send/sent break/broke build/built choose/chose cut/cut draw/drew "
        "forget/forgot hide/hid leave/left lift/lifted like/liked miss/missed order/ordered pick/picked pull/pulled "
        "push/pushed read/read remember/remembered repair/repaired save/saved show/showed steal/stole touch/touched "
        "turn/turned use/used visit/visited wash/washed drop/dropped return/returned receive/received cover/covered "
        "change/changed collect/collected describe/described discover/discovered finish/finished share/shared"
    ).split()
]
VP = [
    tuple(v.split("/"))
    for v in (
        "see/saw help/helped call/called follow/followed meet/met know/knew ask/asked tell/told thank/thanked "
        "visit/visited trust/trusted believe/believed remember/remembered love/loved hear/heard invite/invited "
        "teach/taught answer/answered surprise/surprised greet/greeted join/joined leave/left"
    ).split()
]
VI = [
    tuple(v.split("/"))
    for v in (
        "walk/walked talk/talked sleep/slept wait/waited work/worked play/played sing/sang laugh/laughed stop/stopped "
        "jump/jumped dance/danced smile/smiled run/ran sit/sat stand/stood swim/swam travel/traveled rest/rested "
        "listen/listened arrive/arrived speak/spoke cry/cried fall/fell live/lived study/studied stay/stayed"
    ).split()
]
PREP = "in near behind under across beside above inside outside around beyond".split()
ADV = (
    "slowly quickly softly today yesterday again together early late alone outside quietly carefully suddenly often "
    "always never sometimes usually nearly almost finally easily gently loudly clearly certainly probably"
).split()
MANNER = "slowly quickly softly again together alone quietly carefully gently loudly clearly easily".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
TIMES = (
    "in the morning|in the evening|in the afternoon|at night|every day|last week|next year|after dinner|before lunch|"
    "all day|in the summer|in the winter|in the spring|last night|this morning|at noon|before sunrise|after school|"
    "for an hour|for a long time|many years ago|right now|once a week|every evening|since the war|at the weekend"
).split("|")
NAMES = (
    "John Mary Peter Anna Tom Alice David Sarah James Emma Robert Laura Michael Helen George Susan Paul Kate Henry "
    "Jane Daniel Lucy Martin Rose"
).split()
PLURALS = (
    "apples books cars dogs cats birds letters songs trees boats boxes shoes horses chairs windows stories friends "
    "flowers stones houses people children students workers bottles tickets questions pictures minutes hours days "
    "weeks months years miles dollars pages stars eggs clouds islands soldiers machines words roads"
).split()
PRON = "I you we they he she".split()
ONES = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
FIXED = (
    "How can I help you today?|Thank you for calling.|Please hold the line.|Your order will arrive tomorrow.|"
    "I am sorry, I did not understand that.|Could you say that again, please?|The weather is nice today.|"
    "Have a good day.|What time is it?|Where do you live?|Nice to meet you.|See you later.|It does not matter.|"
    "Once upon a time there was a king.|The end of the story is a surprise.|Can you hear me now?|"
    "Let me check that for you.|Is there anything else that I can do for you?|Welcome to the show.|"
    "Everything is ready.|That is all for now.|The server is ready to speak.|Every sentence is a small journey.|"
    "This voice was made on a small computer.|No one knows where the wind comes from.|"
    "Speech comes from this machine, one small piece after another."
).split("|")

HELD_OUT = 50


class Grammar:
    """Draws sentences; `random` decides everything."""

    def __init__(self, generator: random.Random) -> None:
        self._random = generator
        self._one = generator.choice
        self._forms = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("form_")]

    def sentence(self) -> str:
        if self._random.random() < 0.02:
            return self._one(FIXED)
        text = self._one(self._forms)()
        text = text[0].upper() + text[1:]
        return text if text[-1] in ".?!" else text + "."

    def _maybe(self, chance: float, text: str) -> str:
        return f" {text}" if self._random.random() < chance else ""

    def _word(self, words: str) -> str:
        return self._one(words.split())

    def number(self) -> str:
        kind = self._random.random()
        if kind < 0.35:
            return self._one(ONES[1:])
        if kind < 0.55:
            return self._one(TEENS)
        if kind < 0.7:
            return self._one(TENS)
        if kind < 0.9:
            return f"{self._one(TENS)} {self._one(ONES)}"
        return f"{self._one(ONES[1:])} {self._one(['hundred', 'thousand'])}"

    def noun(self, nouns: list[str]) -> str:
        determiner = self._word("the the the the a a my your his her our their this that every another")
        words = self._maybe(0.4, self._one(ADJ)).lstrip() + " " + self._one(nouns)
        words = words.strip()
        if determiner == "a" and words[0] in "aeiou":
            determiner = "an"
        if words.endswith(("people", "children")) and determiner in ("a", "an", "this", "that", "every", "another"):
            determiner = "the"
        return f"{determiner} {words}"

    def thing(self) -> str:
        return self.noun(self._one([THINGS, THINGS, THINGS, ANIMALS, NATURE]))

    def person(self) -> str:
        kind = self._random.random()
        return self.noun(PEOPLE) if kind < 0.5 else self._one(NAMES) if kind < 0.7 else self._one(PRON)

    def whom(self) -> str:
        return self._one([self.noun(PEOPLE), self._one(NAMES), *"me you us them him her".split()])

    def place(self) -> str:
        return f"{self._one(PREP)} {self.noun(PLACES)}"

    def when(self) -> str:
        kind = self._random.random()
        if kind < 0.6:
            return self._one(TIMES)
        return f"on {self._one(DAYS)}" if kind < 0.8 else f"in {self._one(MONTHS)}"

    def past(self) -> str:
        """What somebody did."""
        kind = self._random.random()
        if kind < 0.4:
            return f"{self._one(VT)[1]} {self.thing()}"
        if kind < 0.6:
            return f"{self._one(VP)[1]} {self.whom()}"
        return f"{self._one(VI)[1]}{self._maybe(0.5, self._one(MANNER))}{self._maybe(0.5, self.place())}"

    def base(self) -> str:
        """Something to do."""
        kind = self._random.random()
        if kind < 0.45:
            return f"{self._one(VT)[0]} {self.thing()}"
        if kind < 0.65:
            return f"{self._one(VP)[0]} {self.whom()}"
        return f"{self._one(VI)[0]}{self._maybe(0.6, self._one([self.place(), self.when(), self._one(MANNER)]))}"

    def form_did(self) -> str:
        return f"{self.person()} {self.past()}{self._maybe(0.4, self.when())}"

    def form_did_too(self) -> str:
        return f"{self.person()} {self._one(ADV[12:])} {self.past()}"

    def form_then(self) -> str:
        first, link = f"{self.person()} {self.past()}", self._one([" and", ", but", " because", " while"])
        return f"{first}{link} {self.person()} {self.past()}"

    def form_when(self) -> str:
        first = f"{self._word('when before after because')} {self.person()} {self.past()}"
        return f"{first}, {self.person()} {self.past()}"

    def form_time_first(self) -> str:
        return f"{self.when()}, {self.person()} {self.past()}"

    def form_will(self) -> str:
        helper = self._one(["will", "can", "could", "should", "must", "would", "might", "will not", "cannot"])
        return f"{self.person()} {helper} {self.base()}{self._maybe(0.2, self.when())}"

    def form_want(self) -> str:
        who = self._one(["I", "you", "we", "they", "the children", "my friends"])
        return f"{who} {self._one(['want', 'need', 'like', 'have', 'hope', 'try'])} to {self.base()}"

    def form_question(self) -> str:
        helper = self._one(["can", "could", "will", "would", "did", "should"])
        return f"{helper} {self.person()} {self.base()}?"

    def form_what(self) -> str:
        which = self._one(["what", "why", "when", "where", "how"])
        if which == "what":
            return f"what did {self.person()} {self._one(VT)[0]}{self._maybe(0.5, self.place())}?"
        return f"{which} did {self.person()} {self.base()}?"

    def form_where(self) -> str:
        return f"{self._one(['where', 'what', 'how old', 'how far'])} is {self.thing()}?"

    def form_is(self) -> str:
        degrees = ["", "very ", "too ", "not ", "so "]
        return f"{self.thing()} {self._word('is was')} {self._one(degrees)}{self._one(ADJ)}"

    def form_is_two(self) -> str:
        return f"{self.thing()} {self._one(['is', 'was'])} {self._one(ADJ)} and {self._one(ADJ)}"

    def form_feel(self) -> str:
        who = self._one(["he was", "she was", "I am", "we are", "they were", "you are", f"{self._one(NAMES)} is"])
        degrees = ["", "very ", "always ", "never ", "not "]
        return f"{who} {self._one(degrees)}{self._one(FEEL)}{self._maybe(0.5, self.when())}"

    def form_there(self) -> str:
        start = f"there {self._word('are were')} {self.number()} {self._maybe(0.4, self._one(ADJ)).lstrip()}".rstrip()
        return f"{start} {self._one(PLURALS)} {self.place()}"

    def form_there_is(self) -> str:
        start = f"there {self._word('is was')} {self._one(['no', 'some', 'a little', 'enough', 'too much'])}"
        return f"{start} {self._one(MASS)} {self.place()}"

    def form_mass(self) -> str:
        return f"the {self._one(MASS)} {self.place()} {self._one(['is', 'was'])} {self._one(ADJ)}"

    def form_count(self) -> str:
        return f"{self.person()} {self._one(VT)[1]} {self.number()} {self._one(PLURALS)}{self._maybe(0.6, self.when())}"

    def form_digits(self) -> str:
        start = self._one(["the number is", "my phone number is", "please dial", "the code is"])
        return f"{start} {' '.join(self._one(ONES) for _ in range(self._random.randint(3, 6)))}"

    def form_sum(self) -> str:
        left = f"{self.number()} {self._word('plus and times')} {self.number()}"
        return f"{left} {self._word('is makes')} {self.number()}"

    def form_clock(self) -> str:
        hour = self._one(ONES + TEENS[:3])
        part = self._one(["in the morning", "in the evening", "at night", "in the afternoon"])
        if self._random.random() < 0.5:
            return f"it is {self._one(ONES + TEENS + ['half', 'a quarter'])} {self._one(['past', 'to'])} {hour} {part}"
        what = f"{self._word('train bus meeting game lesson show')} {self._word('starts leaves begins ends')}"
        return f"the {what} at {hour} {part}"

    def form_date(self) -> str:
        ordinal = self._word("first second third fourth fifth sixth seventh eighth ninth tenth")
        start = self._one(["today is", "tomorrow is", "the meeting is on", "we will meet on"])
        return f"{start} {self._one(DAYS)}, {self._one(MONTHS)} {ordinal}"

    def form_please(self) -> str:
        return f"please {self.base()}{self._maybe(0.4, 'and ' + self.base())}"

    def form_do_not(self) -> str:
        return f"{self._one(['do not', 'never', 'always', 'let us', 'you should not'])} {self.base()}"

    def form_hello(self) -> str:
        greeting = self._one(
            ["hello", "good morning", "good evening", "welcome", "thank you", "goodbye", "yes", "no", "well"]
        )
        return f"{greeting}, {self._one([self._one(NAMES) + ', ', ''])}{self.person()} {self.past()}"

    def form_this_is(self) -> str:
        start = self._one(["this is", "here is", "that was", "it was", "it is"])
        return f"{start} {self.noun(self._one([THINGS, PEOPLE, PLACES, ANIMALS]))}{self._maybe(0.3, self.place())}"

    def form_said(self) -> str:
        return f"{self.person()} said that {self.person()} {self.past()}"

    def form_if(self) -> str:
        return f"if you {self.base()}, {self.person()} will {self.base()}"

    def form_more(self) -> str:
        start = f"{self.thing()} is {self._word('more less')}"
        return f"{start} {self._word('important beautiful expensive dangerous difficult famous')} than {self.thing()}"

    def form_went(self) -> str:
        start = f"{self.person()} {self._word('went walked came drove returned traveled')}"
        return f"{start} {self._word('to from into through past')} {self.noun(PLACES)}{self._maybe(0.4, self.when())}"

    def form_of(self) -> str:
        start = f"the {self._word('color size end middle top door roof history sound smell side center')}"
        return f"{start} of {self.noun(self._one([PLACES, THINGS]))} {self._word('is was')} {self._one(ADJ)}"


def sentences(count: int, seed: int = 7, words: int = 14) -> tuple[list[str], list[str]]:
    """`count` different sentences of at most `words` words, and `HELD_OUT` more that are not among them and whose
    words all are."""
    grammar = Grammar(random.Random(seed))
    found: dict[str, None] = {}
    while len(found) < count + 8 * HELD_OUT:
        text = grammar.sentence()
        if len(text.split()) <= words:
            found[text] = None
    texts = list(found)
    train = texts[:count]
    seen = {word for text in train for word in normal(text)}
    held = [text for text in texts[count:] if seen.issuperset(normal(text)) and 5 <= len(text.split()) <= 12]
    return train, held[:HELD_OUT]


def normal(text: str) -> list[str]:
    """The words of a text as a recogniser writes them."""
    return re.sub(r"[^a-z' ]", " ", text.lower()).split()
