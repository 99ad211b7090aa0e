"""README_CN.md says what README.md says: the same sections, commands, tables, figures and links, in Chinese."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md"))
TO_CHINESE, TO_ENGLISH = "English | [中文](README_CN.md)", "[English](README.md) | 中文"

FIGURE = re.compile(r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?(?: ?(?:%|ms|s|min|MB|GB|GiB)(?![A-Za-z]))?")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()]*)\)")
CODE = re.compile(r"`[^`]*`")
COMMENT = re.compile(r"\s+# .*")
HAN = "[\u4e00-\u9fff]"
NUMERALS = {"two": "[两二]", "three": "三", "four": "四", "five": "五", "six": "六", "seven": "七", "eight": "八",
            "nine": "九", "ten": "十", "eleven": "十一", "twelve": "十二", "thirteen": "十三", "twenty": "二十"}


def sections(text):
    """Lists of blocks, each led by its heading; a block is a paragraph, a table, an item of a list or fenced code."""
    found, block, fenced = [], [], False
    for line in [*text.replace(TO_CHINESE, "").replace(TO_ENGLISH, "").splitlines(), ""]:
        if block and not fenced and (not line or line.startswith("- ")):
            if block[0].startswith("#"):
                found.append([])
            found[-1].append("\n".join(block))
            block = []
        fenced ^= line.startswith("```")
        if line or fenced:
            block.append(line)
    return found


def kind(block):
    return re.match(r"#+ |```\w*|\||!|- |", block).group()


def facts(text):
    """What a translation leaves alone: figures with their units, code, where links and pictures lead."""
    text = re.sub(r"\n\s*", " ", text)
    return {"figures": Counter(figure.replace(" ", "") for figure in FIGURE.findall(text)),
            "code": Counter(CODE.findall(text)), "links": [(mark, target) for mark, _, target in LINK.findall(text)]}


def english_words(text):
    return re.findall(r"\b[a-z]{2,}\b", LINK.sub(r"\2", CODE.sub("", text)).lower())


def compare(english, chinese):
    """What the two pieces of text do not share."""
    one, other = facts(english), facts(chinese)
    found = [f"{what} {one[what]} against {other[what]}" for what in one if one[what] != other[what]]
    words = english_words(english)
    found += [f"no {word}" for word in words if word in NUMERALS and not re.search(NUMERALS[word], chinese)]
    if len(words) >= 4 and not re.search(HAN, chinese):
        found.append("not translated")
    return [f"{problem}, in: {chinese}" for problem in found]


def compare_blocks(english, chinese):
    if english.startswith("```"):
        lines = english.split("\n"), chinese.split("\n")
        commands = [[COMMENT.sub("", line) for line in part] for part in lines]
        if commands[0] != commands[1]:
            return [f"commands {commands[0]} against {commands[1]}"]
        comments = [["".join(COMMENT.findall(line)) for line in part] for part in lines]
        return [problem for pair in zip(*comments) for problem in compare(*pair)]
    if english.startswith("|"):
        tables = [[row.replace("\\|", "").split("|") for row in block.split("\n")] for block in (english, chinese)]
        if [len(row) for row in tables[0]] != [len(row) for row in tables[1]]:
            return [f"rows or columns of the table: {chinese}"]
        return [problem for rows in zip(*tables) for cells in zip(*rows) for problem in compare(*cells)]
    return compare(english, chinese)


def differences(english, chinese):
    """One line for each thing that the two READMEs do not share, with the section in which it is."""
    one, other = sections(english), sections(chinese)
    if [kind(section[0]) for section in one] != [kind(section[0]) for section in other]:
        return [f"headings: {[section[0] for section in one]} against {[section[0] for section in other]}"]
    found = []
    for left, right in zip(one, other):
        if [kind(block) for block in left] != [kind(block) for block in right]:
            found.append(f"{left[0]}: {[kind(block) for block in left]} against {[kind(block) for block in right]}")
        else:
            found += [f"{left[0]}: {problem}" for pair in zip(left, right) for problem in compare_blocks(*pair)]
    return found


def test_the_chinese_readme_says_what_the_english_one_says():
    assert differences(ENGLISH, CHINESE) == []


def test_each_readme_leads_to_the_other():
    assert ENGLISH.splitlines()[2] == TO_CHINESE
    assert CHINESE.splitlines()[2] == TO_ENGLISH


def test_chinese_typography():
    """Full-width punctuation beside Chinese, one space between Chinese and letters, digits or code; no broken lines."""
    for section in sections(CHINESE):
        for block in section:
            if block.startswith("```"):
                continue
            text = re.sub(r" *\| *", "|", LINK.sub(r"\2", block).replace("*", ""))
            text = re.sub(r"\([\w +/]+\)", "x", text, flags=re.ASCII)    # a formula keeps its own brackets
            for wrong in (f"{HAN} ?[,.:;?!()]", f"[,:;?!()] ?{HAN}", f"{HAN}[A-Za-z0-9`]", f"[A-Za-z0-9`%]{HAN}",
                          f"{HAN} +{HAN}", "[，。、；：（）] | [，。、；：（）]"):
                assert not re.search(wrong, text), re.search(f".{{0,20}}(?:{wrong}).{{0,20}}", text).group()
            assert "\n" not in block or block.startswith("|"), "a line break is a space between two Chinese characters"


CHANGES = {
    "heading lost": (r"^## .*\n", ""),
    "heading added": (r"^## ", "## 3\n\n## "),
    "heading of another level": (r"^## ", "### "),
    "command changed": (r"^python scripts/train\.py --config ", "python scripts/train.py --conf "),
    "command lost": (r"^python scripts/.*\n", ""),
    "command twice": (r"^(python scripts/.*\n)", r"\1\1"),
    "row lost": (r"^\| `.*\n", ""),
    "rows in another order": (r"^(\| `.*\n)(\| `.*\n)", r"\2\1"),
    "column lost": (r"^\| `(.*)\|.*\|\n", r"| `\1|\n"),
    "name of an option": (r"^\| `model\.", "| `modell."),
    "default of an option": (r"^(\| `model\.\w+` \| `)", r"\g<1>1"),
    "cell with a figure": (r"^(\| .*\| )\d", r"\g<1>123"),
    "figures of two cells exchanged": (r"\| (\d\S*) \| (\d\S*) \|$", r"| \2 | \1 |"),
    "unit": (r"(?<=\d) ms", " s"),
    "percent": (r"(?<=\d) ?%", ""),
    "number in words": (r"\b(three|four)\b|[三四]", "nine"),
    "picture": (r"\]\(docs/\w+\.png\)", "](docs/another.png)"),
    "link": (r"\]\(https://arxiv\.org/abs/\d", "](https://arxiv.org/abs/"),
    "item of a list": (r"^- ", ""),
    "paragraph cut in two": (r"(?<=[.。]) ?(?=\*\*)|(?<=[,，] )|(?<=，)", "\n\n"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("language", ["English", "Chinese"])
def test_a_change_in_one_of_them_is_found(change, language):
    pattern, replacement = CHANGES[change]
    before = ENGLISH if language == "English" else CHINESE
    after = re.sub(pattern, replacement, before, count=1, flags=re.M)
    assert after != before
    assert differences(after, CHINESE) if language == "English" else differences(ENGLISH, after)


@pytest.mark.parametrize("start", range(4))
def test_a_changed_figure_is_found_wherever_it_stands(start):
    """In text, cells, captions, commands, comments and headings: every twelfth figure, one at a time."""
    figures = list(re.finditer(r"\d+(?:\.\d+)*", CHINESE))[3 * start::12]
    assert len(figures) >= 50
    for figure in figures:
        changed = CHINESE[:figure.start()] + figure.group() + "7" + CHINESE[figure.end():]
        assert differences(ENGLISH, changed), changed[figure.start() - 30:figure.end() + 30]


def test_a_table_left_in_english_is_found():
    english, chinese = ([block for section in sections(text) for block in section if "`model.dim`" in block]
                        for text in (ENGLISH, CHINESE))
    assert any("not translated" in problem for problem in differences(ENGLISH, CHINESE.replace(chinese[0], english[0])))
