"""`tidegate.toml` by `tidegate check`: what is wrong is told with file, line, section, value and the nearest right word."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tidegate._cli import cli
from tidegate._cli.lines import lines_of

BACKEND = """\
[[backend]]
name = "api"
url = "https://api.example/items/{target}"
quota = "100/min"
"""
TARGETS = '[targets]\nlist = ["one", "two"]\n'


def check(text: str | bytes, folder: Path, *, code: int, **environment: str) -> str:
    """What `tidegate check` prints about a file."""
    file = folder / "tidegate.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    result = CliRunner().invoke(cli, ["check", str(file)], env=environment)
    assert result.exit_code == code, result.output
    return result.output.replace(f"{folder}/", "")


def problems(text: str | bytes, folder: Path) -> list[str]:
    return check(text, folder, code=2).splitlines()


@pytest.mark.parametrize(
    "line, told",
    [
        (
            'quota = "100/mn"',
            (""""api" quota = "100/mn": write amount/period, such as '100/min', '900/15min' or '10/s burst 20'. """
            'Did you mean "100/min"?'),
        ),
        (
            'quota = "100 per minute"',
            (""""api" quota = "100 per minute": write amount/period, such as '100/min', '900/15min' or '10/s burst 20'. """
            'Did you mean "100/minute"?'),
        ),
        (
            'quota = "10/s brust 20"',
            (""""api" quota = "10/s brust 20": write amount/period, such as '100/min', '900/15min' or '10/s burst 20'. """
            'Did you mean "10/s burst 20"?'),
        ),
        ('quota = "0/s"', '"api" quota = "0/s": amount=0: give an integer from 1 to 4294967295'),
        ("quota = 100", '"api" quota = 100: give a text such as "100/min", or an array of them'),
        ('limit = "100/min"', '"api" limit: no key of this section. Did you mean "quota"?'),
        ("concurency = 3", '"api" concurency: no key of this section. Did you mean "concurrency"?'),
        (
            "zzz = 3",
            ('"api" zzz: no key of this section; there are name, url, quota, concurrency, group, accounts, method, headers, '
            "timeout, weight, cold_start, max_redirects"),
        ),
        ("concurrency = 0", '"api" concurrency = 0: give a whole number from 1, or "none" for no cap'),
        ('timeout = "5 mn"', '"api" timeout = "5 mn": give a span above 0, such as "30s", "15min" or "1h". Did you mean "5min"?'),
        ("timeout = -1", '"api" timeout = -1: give a span above 0, such as "30s", "15min" or "1h"'),
        (
            'cold_start = "asume_full"',
            '"api" cold_start = "asume_full": give one of assume_empty, assume_full. Did you mean "assume_full"?',
        ),
        ('method = "GET IT"', """"api" method = "GET IT": give a method as 'GET' or 'POST'"""),
        ("weight = 0", '"api" weight = 0: give a number above 0'),
        ('weight = "heavy"', '"api" weight = "heavy": give a number, not a text'),
        ("headers = { A = 1 }", '"api" headers: give a text, not a whole number'),
        ('headers = { "A B" = "x" }', """"api" headers.A B: a header's name has letters, digits and hyphens"""),
        ('headers = { A = "x\\ny" }', '"api" headers.A: its value has a line break, or something else that no header may hold'),
        ('headers = { A = "${" }', '"api" headers.A: a variable begins with ${ and ends with }; write $$ for a dollar sign'),
        ('headers = { A = "${a }" }', '"api" headers.A: ${a } names no variable; give letters, digits and _, such as ${API_KEY}'),
        ("headers = { A = '${account}' }", ('"api" headers.A: ${account} is for headers of a backend that has accounts; '
         "give it accounts = [...]")),
        ("weight = -1", '"api" weight = -1: give a number above 0'),
        ('accounts = ["a"]', '"api" accounts: no header of this backend has ${account} in it; give it one'),
        ('group = ""', """"api" group = "": give a name, such as 'api.example', or None"""),
    ],
)  # fmt: skip
def test_line_of_a_backend(tmp_path, line, told):
    backend = "\n".join(row for row in BACKEND.splitlines() if row.split(" =")[0] != line.split(" =")[0])
    at = len(backend.splitlines()) + 1
    assert problems(f"{backend}\n{line}\n{TARGETS}", tmp_path) == [f"tidegate.toml:{at}  [[backend]] {told}"]


@pytest.mark.parametrize(
    "rest, told",
    [
        ('[run]\norder = "agin"', '6  [run] order = "agin": give one of strict, edf, aging, fair. Did you mean "aging"?'),
        (
            '[run]\norder = "aging"',
            '6  [run] order: give step too: the waiting that is worth one level, as step = "1s"',
        ),
        ('[run]\nstep = "1s"', '6  [run] step: is of order = "aging"; leave it out, or give that order'),
        (
            '[run]\norder = "fair"\nweights = { a = 0 }',
            "7  [run] weights: 0.0 is no weight; give a number from 0.001 to 1000",
        ),
        (
            '[run]\npriority = "hgh"',
            '6  [run] priority = "hgh": give one of critical, high, normal, low, or a number from 0 to 255. Did you mean "high"?',
        ),
        ("[run]\npriority = 256", "6  [run] priority = 256: give a priority from 0 (most urgent) to 255"),
        ("[run]\nretries = 3", '6  [run] retries: no key of this section. Did you mean "retry"?'),
        ("[run]\nretry = 3", "6  [run] retry = 3: give a table, not a whole number"),
        ("[run]\n\nretry.attempts = 0", "7  [run.retry] attempts = 0: give an integer from 1 to 4294967295"),
        ("[run.retry]\nbudget = 2", "6  [run.retry] budget = 2.0: give a share from 0 to 1"),
        ("[run.retry]\nbudjet = 1", '6  [run.retry] budjet: no key of this section. Did you mean "budget"?'),
        ('[run]\nstep = "3"', '6  [run] step = "3": give a span above 0, such as "30s", "15min" or "1h". Did you mean "3s"?'),
        ('[run]\noverrun = "drop"', '6  [run] overrun = "drop": give one of coalesce, skip, all, delay'),
        ('[output]\nsave = "bodies"', '6  [output] save = "bodies": give one of body, json, text, status. Did you mean "body"?'),
        ('[output]\nrotate = "1 TB"', '6  [output] rotate = "1 TB": give a size above 0, such as "100MB" or "64KiB"'),
        ('[sink]\nfile = "x"', '5  [sink]: no section. Did you mean "output"?'),
        ("targts = 3", '5  targts: no section. Did you mean "targets"?'),
        ('output = "out.jsonl"', "5  [output]: is a table: write [output] on a line of its own"),
    ],
)  # fmt: skip
def test_line_of_another_section(tmp_path, rest, told):
    # What is in no section comes before the first one.
    text = f"{BACKEND}{rest}\n{TARGETS}" if rest.startswith("[") else f"#\n#\n#\n#\n{rest}\n{BACKEND}{TARGETS}"
    assert problems(text, tmp_path) == [f"tidegate.toml:{told}"]


@pytest.mark.parametrize(
    "targets, told",
    [
        ("", '1  [targets]: give what to collect: list = ["one", "two"] or file = "targets.txt"'),
        ("[targets]\n", '5  [targets]: give what to collect: list = ["one", "two"] or file = "targets.txt"'),
        ("[targets]\nlist = []", "6  [targets] list: is empty; give at least one target"),
        ('[targets]\nlist = ["a"]\nfile = "b"', "7  [targets] file: there is a list already; leave one of them out"),
        (
            '[targets]\nlist = ["a",\n  "b",\n  true]',
            "8  [targets] list[2] = true: give a whole number or a text, not true or false",
        ),
        (
            '[targets]\nfile = "a.txt"\ncolumn = "x"',
            '7  [targets] column: is for csv files; leave it out, or give format = "csv"',
        ),
        (
            '[targets]\nfile = "a.txt"\noptions = ["priority"]',
            "7  [targets] options: are columns of csv files or fields of jsonl files; leave it out",
        ),
        (
            '[targets]\nfile = "a.csv"\noptions = ["pirority"]',
            (
                '7  [targets] options[0] = "pirority": give one of priority, timeout, backends, flow, interval. '
                'Did you mean "priority"?'
            ),
        ),
    ],
)
def test_line_of_the_targets(tmp_path, targets, told):
    assert problems(f"{BACKEND}{targets}", tmp_path) == [f"tidegate.toml:{told}"]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    text = """\
[[backend]]
name = "github"
url = "api.github.com/{target}"
quota = ["60/hour",
         "10/sek"]
headers = { Authorization = "Bearer sesame", "X" = "${" }

[[backend]]
name = "github"
url = "https://api.github.com/{id}"

[[backend]]
quota = "1/s"

[run]
intervall = "30s"
"""
    assert problems(text, tmp_path) == [
        'tidegate.toml:1  [targets]: give what to collect: list = ["one", "two"] or file = "targets.txt"',
        (
            'tidegate.toml:3  [[backend]] "github" url: start it with http:// or https:// and a host; give a base that ends in '
            "'/', a URL with {target} in its path or query, or '{target}' for targets that are URLs"
        ),
        (
            """tidegate.toml:5  [[backend]] "github" quota[1] = "10/sek": write amount/period, such as '100/min', '900/15min' """
            """or '10/s burst 20'. Did you mean "10/sec"?"""
        ),
        'tidegate.toml:9  [[backend]] "github" name: the backend of line 2 has this name; give another',
        'tidegate.toml:10  [[backend]] "github" url: the only field is {target}, not {id}',
        "tidegate.toml:12  [[backend]] name: is missing",
        "tidegate.toml:12  [[backend]] url: is missing",
        'tidegate.toml:16  [run] intervall: no key of this section. Did you mean "interval"?',
    ]


@pytest.mark.parametrize(
    "text, told",
    [
        ('a = "x\nb = 3\n', "1  Illegal character '\\n', in column 7"),
        ("[[backend]]\nname = \n", "2  Invalid value, in column 8"),
        ("[run\n", "1  Expected ']' at the end of a table declaration, in column 5"),
        ("a = 1\na = 2\n", "2  Cannot overwrite a value, in column 6"),
        (b"# one\nname = '\xff'\n", "2  is not UTF-8"),
        ("[backend]\nname = 'api'\n" + TARGETS, "1  [backend]: write [[backend]], with two brackets: there may be several"),
        (TARGETS, "1  there is no [[backend]]; give at least one, with name, url and quota"),
    ],
)
def test_file_that_is_none(tmp_path, text, told):
    assert problems(text, tmp_path) == [f"tidegate.toml:{told}"]


def test_missing_file_names_the_way_out(tmp_path):
    result = CliRunner().invoke(cli, ["check", str(tmp_path / "other.toml")])
    assert result.exit_code == 2
    assert result.output == f"{tmp_path}/other.toml: there is no such file; `tidegate init` writes one\n"


def test_group_with_two_quotas_is_told(tmp_path):
    backends = "".join(
        BACKEND.replace("api", name).replace("100", amount) + 'group = "g"\n' for name, amount in (("a", "1"), ("b", "2"))
    )
    assert problems(backends + TARGETS, tmp_path) == [
        ("tidegate.toml:1  [[backend]]: group='g': backends 'a' and 'b' spend one quota, so give them the same limits, "
        "concurrency and accounts, or different groups")
    ]  # fmt: skip


def test_plan_is_told_as_it_is_understood(tmp_path):
    text = """\
[[backend]]
name = "window"
url = "https://user:sesame@api.example/items/{target}?key=sesame"
quota = ["100/min", "3k/h counter"]
[[backend]]
name = "bucket"
url = "https://${HOST}/items/"
quota = "100/s burst 6"
concurrency = "none"
accounts = ["sesame", "${KEY}"]
headers = { Authorization = "Bearer ${account}", Price = "$$5" }
[targets]
file = "ids.txt"
[run]
order = "fair"
timeout = "10min"
[output]
file = "out/replies.jsonl"
rotate = "100MB"
"""
    (tmp_path / "ids.txt").write_bytes(b"one\n\n# no\n two \nthree\nfour\none\n\x00\n")
    told = check(text, tmp_path, code=0, KEY="sesame", HOST="")
    assert "sesame" not in told
    rows = [" ".join(row.split()) for row in told.splitlines()]
    assert rows == [
        "ids.txt:8 has a control character",
        "tidegate.toml: can be run",
        "",
        "backend allows at once accounts usable address",
        "window 100/min (window, to begin with) and 3000/h (counter) 32 - 99.6% https://api.example/items/{target}",
        "bucket 100/s (bucket of 6, to begin with) any 2, each 54.1% https://${HOST}/items/",
        "usable: of what its limits allow, the most that can be sent at a round trip of 100 ms",
        "",
        "targets 4 from ids.txt, without 1 bad line and 1 duplicate: 'one', 'two', 'three', …",
        "run once; order fair; priority 128; at most 4 attempts; a deadline after 10 min",
        "output out/replies.jsonl: body of each reply as a line of JSON, a new file after 100 MB",
        "round all 4 targets may go at once",
        "variable HOST is not set: `tidegate run` needs it",
        "variable KEY is set",
    ]


def test_round_takes_as_long_as_the_limits_of_all_backends_say(tmp_path):
    text = BACKEND + BACKEND.replace("api", "other").replace("100/min", "30/min") + f"[targets]\nlist = {list(range(400))}\n"
    assert "all 400 targets take at least 3 min, from idle" in check(text, tmp_path, code=0)
    text = BACKEND.replace('quota = "100/min"', "") + TARGETS
    assert "round     has no limit but the concurrency and the servers' speed" in check(text, tmp_path, code=0)


def test_interval_that_can_be_kept_and_one_that_cannot(tmp_path):
    text = f"{BACKEND}[targets]\nlist = {list(range(50))}\n[run]\ninterval = '1min'\noverrun = 'skip'\n"
    told = check(text, tmp_path, code=0)
    assert "run       every 1 min, skip what is late, spread; order strict" in told
    assert "round     all 50 targets may go at once" in told
    assert "interval  can be kept: 50 targets ask api for 0.833/s of the 1.67/s that it allows (50%)" in told
    told = check(text.replace("1min", "10s"), tmp_path, code=0)
    assert "interval  CANNOT be kept: 50 targets ask api for 5/s of the 1.67/s that it allows, 3 times too much" in told
    assert "an interval of 30 s would fit" in told


def test_interval_of_each_target_needs_one_for_all_others(tmp_path):
    (tmp_path / "ids.csv").write_text("target,interval\none,1min\ntwo,\nthree,30\n")
    text = f'{BACKEND}[targets]\nfile = "ids.csv"\noptions = ["interval"]\n'
    assert problems(text, tmp_path) == [
        'tidegate.toml:7  [targets] options: for "interval" give [run] one, which is that of all others'
    ]
    told = check(f"{text}[run]\ninterval = '20s'\n", tmp_path, code=0)
    assert "3 targets ask api for 0.1/s" in told


def test_limit_by_scope_needs_targets_that_say_theirs(tmp_path):
    text = BACKEND.replace("100/min", "100/min per user")
    assert problems(text + TARGETS, tmp_path) == [
        (
            'tidegate.toml:4  [[backend]] "api" quota: no target says its user; give [targets] a file with such a column or '
            'field, and scopes = ["user"]'
        )
    ]
    (tmp_path / "ids.csv").write_text("target,user\none,ada\ntwo,\nthree,bob\nfour,bob\n")
    file = '[targets]\nfile = "ids.csv"\nscopes = ["user"]\n'
    told = check(text + file, tmp_path, code=0)
    assert "ids.csv:3  has no user, by which a limit counts" in told
    assert "100/min for each user (window, to begin with)" in told
    assert problems(BACKEND + file, tmp_path) == ["tidegate.toml:7  [targets] scopes: no limit is per user; leave it out"]
    assert problems(text + file.replace("user", "usr"), tmp_path) == [
        (
            'tidegate.toml:4  [[backend]] "api" quota: no target says its user; give [targets] a file with such a column or '
            'field, and scopes = ["user"]'
        ),
        'tidegate.toml:7  [targets] scopes: no limit is per usr; leave it out. Did you mean "user"?',
    ]


def test_quotes_that_are_not_closed_do_not_swallow_the_rest_in_silence(tmp_path):
    text = f'{BACKEND}[targets]\nfile = "ids.csv"\n'
    (tmp_path / "ids.csv").write_text('id\none\n"two\nthree\nfour\n')
    told = check(text, tmp_path, code=0)
    assert told.startswith("ids.csv:3  its id goes on to line 5; close the quotes that it opens\n")
    assert "1 from ids.csv, without 1 bad line: 'one'" in told
    assert "round     the one target may go at once" in told


def test_targets_that_lead_nowhere_are_left_out(tmp_path):
    text = BACKEND.replace("https://api.example/items/{target}", "{target}") + '[targets]\nfile = "urls.txt"\n'
    (tmp_path / "urls.txt").write_text("https://a.example/1\nhello\nftp://b.example/\nhttps://\nhttp://b.example\n")
    told = check(text, tmp_path, code=0)
    assert told.splitlines()[:3] == [
        f"urls.txt:{line}  target of length {size} is not an http(s) URL" for line, size in ((2, 5), (3, 16), (4, 8))
    ]
    assert "2 from urls.txt, without 3 bad lines" in told


# ---- files of targets


@pytest.mark.parametrize(
    "name, rows, told",
    [
        ("ids.csv", [], "1  is empty; its first line names the columns"),
        ("ids.csv", ["name,town", "ada,London"], "1  has no column 'target'; it has name, town"),
        ("ids.csv", ["target"], " there is no target in it"),
        ("ids.jsonl", ["", "  "], " there is no target in it"),
        ("ids.txt", ["# nothing"], " there is no target in it"),
    ],
)
def test_file_without_targets(tmp_path, name, rows, told):
    (tmp_path / name).write_text("\n".join(rows))
    assert problems(f'{BACKEND}[targets]\nfile = "{name}"\n', tmp_path) == [f"{name}:{told}"]


def test_file_that_is_not_there(tmp_path):
    assert problems(f'{BACKEND}[targets]\nfile = "ids.txt"\n', tmp_path) == ["ids.txt: cannot be read: No such file or directory"]


def test_bad_lines_of_json(tmp_path):
    rows = [
        '{"id": "one", "timeout": "5s", "backends": ["api"], "priority": 3, "flow": "f"}',
        '{"id": "two", "timeout": "5 mn"}',
        '{"id": "three", "backends": ["apo"]}',
        '{"id": "four", "priority": 300}',
        '{"id": "five", "timeout": null, "priority": null}',
        '{"id": true}',
        '"six"',
        "7",
        "{",
        '{"no": 8}',
        "9" * 5000,
    ]
    (tmp_path / "ids.jsonl").write_text("\n".join(rows))
    options = '["timeout", "backends", "priority", "flow"]'
    told = check(f'{BACKEND}[targets]\nfile = "ids.jsonl"\nfield = "id"\noptions = {options}\n', tmp_path, code=0).splitlines()
    assert told[:5] == [
        'ids.jsonl:2  timeout = "5 mn": give a span above 0, such as "30s", "15min" or "1h"',
        'ids.jsonl:3  backends = ["apo"]: give names of backends, with blanks between them; there are api',
        "ids.jsonl:4  priority = 300: give a priority from 0 (most urgent) to 255",
        "ids.jsonl:6  its 'id' is no text",
        "ids.jsonl:9  is no JSON: Expecting property name enclosed in double quotes, in column 2",
    ]
    assert "targets   4 from ids.jsonl, without 7 bad lines: 'one', 'five', 'six', …" in told


def test_columns_are_found_whatever_writes_them(tmp_path):
    """A byte order mark, quotes, line ends of Windows, a line break in a field, a single column of any name."""
    (tmp_path / "ids.csv").write_bytes(b'\xef\xbb\xbf"target","note"\r\n"a,b","x\r\ny"\r\n c ,z\r\n')
    assert "2 from ids.csv: 'a,b', 'c'" in check(f'{BACKEND}[targets]\nfile = "ids.csv"\n', tmp_path, code=0)
    (tmp_path / "ids.csv").write_bytes(b"name\nada\nbob\n")
    assert "2 from ids.csv: 'ada', 'bob'" in check(f'{BACKEND}[targets]\nfile = "ids.csv"\n', tmp_path, code=0)


# ---- where things stand

KEYS = st.sampled_from(["a", "b-c", "d_1", '"e f"', "'g.h'", '"[i]"', '"j\\"#"'])
SCALARS = st.sampled_from(
    [
        "1",
        "-2.5",
        "true",
        "1979-05-27 07:32:00",
        '"x # ]"',
        "'y = {'",
        '"""\nmany\n"" [lines] """',
        "'''\n# ''raw''\n'''",
        '"\\\\"',
    ],
)
GAPS = st.sampled_from(["", " ", "\n", " # , ] }\n", "\n\n\t"])


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    """A value as TOML writes it."""
    kind = draw(st.sampled_from(["scalar", "array", "table"])) if depth else "scalar"
    if kind == "scalar":
        return draw(SCALARS)
    inside = draw(st.lists(values(depth=depth - 1), max_size=3))
    if kind == "array":
        gap = draw(GAPS)
        comma = draw(st.sampled_from(["", ","])) if inside else ""
        return f"[{gap}{f'{gap},{gap}'.join(inside)}{gap}{comma}{gap}]"
    keys = draw(st.lists(KEYS, min_size=len(inside), max_size=len(inside), unique=True))
    return f"{{ {', '.join(f'{key} = {value}' for key, value in zip(keys, inside, strict=True))} }}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A TOML document; keys may stand twice, which is no TOML."""
    lines = []
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["pair", "pair", "dotted", "table", "element", "comment"]))
        key = draw(KEYS)
        match kind:
            case "pair":
                lines.append(f"{key} = {draw(values())}")
            case "dotted":
                lines.append(f"{key} . {draw(KEYS)}={draw(values())}  # {draw(KEYS)}")
            case "table":
                lines.append(f"[{key}]" if draw(st.booleans()) else f"[ {key} . {draw(KEYS)} ]")
            case "element":
                lines.append(f"[[{key}]]" if draw(st.booleans()) else f"[[ {key}.{draw(KEYS)} ]] # [x")
            case "comment":
                lines.append("# [a] = 3\n")
    return "\n".join(lines)


def places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all that a document holds."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inside for place in [(*at, key), *places(one, (*at, key))]]


@given(documents())
def test_every_key_stands_on_a_line(text):
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = lines_of(text)
    assert set(found) == set(places(document))
    rows = text.split("\n")
    for place, line in found.items():
        if isinstance(place[-1], str):
            assert place[-1].replace('"', '\\"') in rows[line - 1]


ANYTHING = st.sampled_from(
    r"""
0 -1 1 3.5 nan inf 1e308 9223372036854775807 true 1979-05-27 07:32:00 "" "none" "-" "10/s" "1/s_per_host" "1/s_per_user" "30s"
"0s" "high" "fair" "aging" "csv" "api" "${X}" "$" "{target}" "https://api.example/" "http://[::1" "\u0000" "\uD7FF😀" [] [[]] {}
{a=1} {a="b"} ["a",1] ["user"] ["priority"] ["interval"] ["10/s","x"] [{a="b"}] {"A"="${account.a}"} {attempts=2} {cap=-1}
    """.replace("_per_", " per ").split()
)
KNOWN = {
    "[[backend]]": "name url quota concurrency group accounts method headers timeout weight cold_start max_redirects other",
    "[targets]": "list file format column field options scopes strict other",
    "[run]": "interval overrun spread timeout priority order step weights retry other",
    "[output]": "file save rotate sync other",
    "[other]": "other",
    "[[targets]]": "list",
    "[backend]": "name",
}


@st.composite
def configurations(draw: st.DrawFn) -> str:
    """Sections and keys that are nearly right, with any values."""
    backend = BACKEND.replace('"100/min"', draw(ANYTHING)) if draw(st.booleans()) else BACKEND
    lines = [backend, TARGETS] if draw(st.booleans()) else [backend]
    for section in draw(st.lists(st.sampled_from([*KNOWN, "[[backend]]"]), max_size=4)):
        keys = draw(st.lists(st.sampled_from(KNOWN[section].split()), unique=True, max_size=5))
        lines += [section, *(f"{key} = {draw(ANYTHING)}" for key in keys)]
    return "\n".join(lines)


@given(configurations())
def test_whatever_is_given_is_understood_or_told(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("any") / "tidegate.toml"
    file.write_text(text)
    result = CliRunner().invoke(cli, ["check", str(file)])
    assert result.exception is None or isinstance(result.exception, SystemExit), (text, result.exc_info)
    assert result.exit_code in {0, 2}
    if result.exit_code == 2:
        assert all(row.startswith(f"{file}:") for row in result.output.splitlines()), result.output


def test_place_of_each_element():
    text = 'a = 1\n\n[[b]]\nc = [\n "x",\n # y\n "z"]\n[[b]]\n[b.d]\n"e f" = { g = """\n\n""", h = 2 }\n'
    assert lines_of(text) == {
        ("a",): 1, ("b",): 3, ("b", 0): 3, ("b", 0, "c"): 4, ("b", 0, "c", 0): 5, ("b", 0, "c", 1): 7, ("b", 1): 8,
        ("b", 1, "d"): 9, ("b", 1, "d", "e f"): 10, ("b", 1, "d", "e f", "g"): 10, ("b", 1, "d", "e f", "h"): 12,
    }  # fmt: skip
