"""What a backend allows, as a user writes it: the text grammar, the checks, and limits as values."""

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate import Backend, BackendQuota, ConfigError, Limit

UNITS = {
    1e-3: ["ms"],
    1.0: ["s", "sec", "secs", "second", "seconds"],
    60.0: ["m", "min", "mins", "minute", "minutes"],
    3600.0: ["h", "hour", "hours"],
    86400.0: ["d", "day", "days"],
}
LARGEST = 2**32 - 1

amounts = st.integers(1, LARGEST)
periods = st.floats(1e-6, 1e6)


def limits_of(*kinds, **options):
    """Limits of these kinds; None for one that is not named."""
    return st.builds(Limit, amounts, periods, kind=st.sampled_from(kinds), **options)


windows = limits_of(None, "window")
buckets = limits_of(None, "bucket", burst=st.integers(1, 1000))
others = limits_of("leaky", "counter", "unknown")
limits = windows | buckets | others


# ---- Grammar


@pytest.mark.parametrize("unit, period", [(unit, period) for period, units in UNITS.items() for unit in units])
def test_unit(unit, period):
    """Every unit and its plural means its seconds, alone, with a count, and in capitals."""
    assert Limit.parse(f"7/{unit}") == Limit(7, period)
    assert Limit.parse(f"7/15{unit}") == Limit(7, 15 * period)
    assert Limit.parse(f"7 / 15 {unit.upper()}") == Limit(7, 15 * period)


@pytest.mark.parametrize(
    "text, limit",
    [
        ("100/min", Limit(100, 60)),
        ("900/15min", Limit(900, 900)),
        ("10/s burst 20", Limit(10, 1, burst=20)),
        ("10/s burst 1", Limit(10, 1, burst=1)),
        ("10/s window", Limit(10, 1, kind="window")),
        ("10/s bucket", Limit(10, 1, kind="bucket")),
        ("10/s burst 20 bucket", Limit(10, 1, burst=20, kind="bucket")),
        ("50/5s counter", Limit(50, 5, kind="counter")),
        ("10/s leaky", Limit(10, 1, kind="leaky")),
        ("10/s burst 1 leaky", Limit(10, 1, kind="leaky")),
        ("100/min Unknown", Limit(100, 60, kind="unknown")),
        ("3k/h", Limit(3000, 3600)),
        ("3 K / h", Limit(3000, 3600)),
        ("10_000/day", Limit(10_000, 86400)),
        ("5/1.5s", Limit(5, 1.5)),
        ("  5/s\n", Limit(5, 1)),
        ("5\t/\t2\tseconds\tBURST\t8", Limit(5, 2, burst=8)),
        ("1/s burst 1_0", Limit(1, 1, burst=10)),
        (f"{LARGEST}/s", Limit(LARGEST, 1)),
    ],
)
def test_text(text, limit):
    """A text means the limit that the grammar says."""
    assert Limit.parse(text) == limit
    assert BackendQuota(text).limits == (limit,)


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "100", "100/", "/s", "s", "100/x", "100/fortnight", "100 per min", "100/min/min", "100/-1s", "100/0s"],
        *["0/s", "-1/s", "1.5/s", "1e3/s", "_1/s", "k/s", "1kk/s", "1M/s", "inf/s", "nan/s", "1/infs", "1/1e3s", "1/.s"],
        *["10/s burst", "10/s burst 0", "10/s burst -1", "10/s burst x", "10/s burst 2 burst 3", "10/s burst 5 window"],
        *["10/s sometimes", "10/s, 5/min", "10/s\x00", "10/s # comment", f"{LARGEST + 1}/s", f"{LARGEST}k/s"],
        *["9" * 5000 + "/s", f"1/{'9' * 5000}s", f"1/s burst {'9' * 5000}", f"1/{LARGEST}days", "1/s burst 4000000000"],
        *["10/ss", "10/mss", "10/minss", "10/s leaking", "10/s leaky counter", "10/s leaky burst 1"],
        *["10/s burst 2 leaky", "10/s burst 5 counter", "10/s burst 5 unknown", "10/s aligned", "10/sleaky"],
    ],
)
def test_wrong_text(text):
    """A text that is no limit is a `ConfigError` that shows the text and what to write instead."""
    with pytest.raises(ConfigError, match="quota=") as caught:
        Limit.parse(text)
    assert (caught.value.option, caught.value.value) == ("quota", text)
    if len(text) < 100:
        assert repr(text) in str(caught.value)


def test_message_of_wrong_text():
    """What users read: the text, and either what to write or which number is wrong."""
    with pytest.raises(ConfigError) as caught:
        Limit.parse("100 per min")
    assert str(caught.value) == "quota='100 per min': write amount/period, such as '100/min', '900/15min' or '10/s burst 20'"
    with pytest.raises(ConfigError) as caught:
        Limit.parse("0/s")
    assert str(caught.value) == "quota='0/s': amount=0: give an integer from 1 to 4294967295"


@pytest.mark.parametrize("text", [None, 5, b"5/s", ["5/s"], ("5/s",), object()], ids=repr)
def test_text_of_another_type(text):
    """What is not a text is a `ConfigError` too, from `parse` and from a quota."""
    for read in (Limit.parse, BackendQuota):
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert caught.value.value is text


@given(limits)
@example(Limit(1, 1e-9))
@example(Limit(1, 1 / 3))
@example(Limit(1_000_000, 1234567.891))
@example(Limit(10, 1, kind="bucket"))
def test_text_of_a_limit_reads_back(limit):
    """The text that a limit is called by, in its name and its repr, is that limit."""
    assert Limit.parse(limit.name) == limit
    assert repr(limit) == f"Limit({limit.name!r})"


@given(
    st.text()
    | st.text("0123456789_k/ smhdinurtbcwoe.")
    | st.from_regex(r"\d+ ?k?/ ?\d* ?\w+( burst ?\d+)?( \w+)?", fullmatch=True)
)
def test_arbitrary_text(text):
    """Whatever the text, it is a limit or a `ConfigError`."""
    try:
        limit = Limit.parse(text)
    except ConfigError:
        return
    assert Limit.parse(limit.name) == limit


# ---- Limit


def test_limit_without_kind():
    """A limit with a burst is a bucket, any other a window, and that is only a guess."""
    assert (Limit(5, 1).kind, Limit(5, 1).burst, Limit(5, 1).guessed) == ("window", None, True)
    assert (Limit(5, 1, burst=9).kind, Limit(5, 1, burst=9).burst, Limit(5, 1, burst=9).guessed) == ("bucket", 9, True)
    assert Limit(5, 1, kind="window") != Limit(5, 1)


def test_limit_with_a_kind():
    """A kind that is named is no guess; a bucket's burst defaults to its amount, and a leaky limit holds one."""
    bursts = {kind: Limit(5, 1, kind=kind).burst for kind in ("window", "bucket", "leaky", "counter", "unknown")}
    assert bursts == {"window": None, "bucket": 5, "leaky": 1, "counter": None, "unknown": None}
    assert not any(Limit(5, 1, kind=kind).guessed for kind in bursts)
    assert Limit(5, 1, kind="leaky", burst=1) == Limit(5, 1, kind="leaky")


def test_anchor_and_alignment():
    """By default the clock starts at the headers, and windows are not aligned; what differs shows."""
    assert (Limit(5, 60).anchor, Limit(5, 60).aligned) == ("headers", False)
    limit = Limit(5, 60, anchor="finish", aligned=True)
    assert repr(limit) == "Limit('5/min', anchor='finish', aligned=True)"
    assert limit.name == "5/min"
    assert limit not in (Limit(5, 60), Limit(5, 60, aligned=True), Limit(5, 60, anchor="finish"))


def test_jitter():
    """Nothing is known of the line by default; seconds, a timedelta or "auto" say more."""
    assert Limit(5, 60).jitter is None
    assert Limit(5, 60, jitter=timedelta(milliseconds=5)) == Limit(5, 60, jitter=0.005)
    assert (Limit(5, 60, jitter=0).jitter, Limit(5, 60, jitter="auto").jitter) == (0.0, "auto")
    assert repr(Limit(5, 60, jitter=1)) == "Limit('5/min', jitter=1.0)"
    assert repr(Limit(5, 60, jitter="auto")) == "Limit('5/min', jitter='auto')"


@pytest.mark.parametrize("jitter", [-0.1, float("nan"), float("inf"), "5", True, timedelta(seconds=-1), []], ids=repr)
def test_wrong_jitter(jitter):
    """Jitter is a span from 0, or one word."""
    with pytest.raises(ConfigError) as caught:
        Limit(5, 1, jitter=jitter)
    assert str(caught.value) == f"jitter={jitter!r}: give seconds from 0, a timedelta, 'auto' or None"
    assert caught.value.option == "jitter"


@pytest.mark.parametrize("options", [{"anchor": "finish"}, {"aligned": True}], ids=repr)
def test_jitter_that_has_no_use(options):
    """What is known of the line says nothing where acknowledgements are not what holds back."""
    with pytest.raises(ConfigError, match="it has no use with"):
        Limit(5, 1, jitter=0, **options)


@pytest.mark.parametrize("anchor", ["header", "", None, 1, ["finish"]], ids=repr)
def test_wrong_anchor(anchor):
    """An anchor is one of two words."""
    with pytest.raises(ConfigError) as caught:
        Limit(5, 1, anchor=anchor)
    assert str(caught.value) == f"anchor={anchor!r}: give 'headers' or 'finish'"
    assert (caught.value.option, caught.value.value) == ("anchor", anchor)


@pytest.mark.parametrize("options", [{"aligned": 1}, {"aligned": None}, *({"aligned": True, **other} for other in (
    {"kind": "bucket"}, {"burst": 5}, {"kind": "leaky"}, {"kind": "counter"}, {"kind": "unknown"},
))], ids=repr)  # fmt: skip
def test_wrong_alignment(options):
    """Only windows are aligned, or not."""
    with pytest.raises(ConfigError, match="aligned=") as caught:
        Limit(5, 1, **options)
    assert (caught.value.option, caught.value.value) == ("aligned", options["aligned"])


def test_period_as_timedelta():
    """A period may be a timedelta; it is kept in seconds."""
    assert Limit(5, timedelta(minutes=1.5)) == Limit(5, 90)
    assert Limit(5, timedelta(minutes=1)).period == 60.0


def test_name():
    """A limit is called by its text unless it has a name."""
    assert Limit(5, 60).name == "5/min"
    names = {Limit(5, period).name for period in (1, 5, 0.5, 90, 900, 3600, 7200, 86_400, 604_800)}
    assert names == {"5/s", "5/5s", "5/0.5s", "5/90s", "5/15min", "5/h", "5/2h", "5/d", "5/7d"}
    assert Limit(5, 0.5, burst=9).name == "5/0.5s burst 9"
    named = Limit(5, 60, name="search")
    assert named.name == "search"
    assert named != Limit(5, 60)


@pytest.mark.parametrize("amount", [0, -1, LARGEST + 1, 1.0, 1.5, float("nan"), float("inf"), True, "5", None], ids=repr)
def test_wrong_amount(amount):
    """Amounts and bursts are integers from 1 to 2^32 - 1."""
    for option, make in (("amount", lambda: Limit(amount, 1)), ("burst", lambda: Limit(1, 1, kind="bucket", burst=amount))):
        if option == "burst" and amount is None:
            continue
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == f"{option}={amount!r}: give an integer from 1 to 4294967295"
        assert (caught.value.option, caught.value.value) == (option, amount) or amount != amount  # noqa: PLR0124


@pytest.mark.parametrize(
    "period",
    [0, -1, -0.0, float("nan"), float("inf"), timedelta(0), timedelta(days=-1), True, "60", None, 10**400],
    ids=lambda period: repr(period)[:20],
)
def test_wrong_period(period):
    """Periods are finite and above zero."""
    with pytest.raises(ConfigError, match="give seconds above 0, or a timedelta") as caught:
        Limit(5, period)
    assert caught.value.option == "period"


@pytest.mark.parametrize("limit", [{"amount": 1, "period": 4e9}, {"amount": 1, "period": 60.0, "burst": LARGEST}])
def test_limit_of_a_century(limit):
    """A limit that takes more than 100 years to refill is refused where it is written, not where it is used."""
    with pytest.raises(ConfigError, match="100 years") as caught:
        Limit(**limit)
    assert caught.value.option == ("burst" if "burst" in limit else "period")


@pytest.mark.parametrize("kind", ["leaking", "", "Window", 1, ["window"]], ids=repr)
def test_wrong_kind(kind):
    """A kind is one of the words."""
    with pytest.raises(ConfigError) as caught:
        Limit(5, 1, kind=kind)
    assert str(caught.value) == f"kind={kind!r}: give 'window', 'bucket', 'leaky', 'counter' or 'unknown', or leave it out"
    assert (caught.value.option, caught.value.value) == ("kind", kind)


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("window", "a window has no burst"),
        ("counter", "a counter has no burst"),
        ("unknown", "it is a bucket's"),
        ("leaky", "a leaky limit holds one"),
    ],
)
def test_burst_of_what_is_no_bucket(kind, reason):
    """Only a bucket has a burst, and others say what to do about it."""
    with pytest.raises(ConfigError) as caught:
        Limit(5, 1, kind=kind, burst=9)
    assert str(caught.value) == f"burst=9: {reason}; leave it out, or give kind='bucket'"


@pytest.mark.parametrize("name", ["", 5, b"search"], ids=repr)
def test_wrong_name(name):
    """A name is a text that is not empty."""
    with pytest.raises(ConfigError) as caught:
        Limit(5, 1, name=name)
    assert (caught.value.option, caught.value.value) == ("name", name)


# ---- BackendQuota


def test_quota_takes_texts_and_limits():
    """Texts and limits mix, and keep their order."""
    quota = BackendQuota("100/min", Limit(5, 1, burst=9), concurrency=3)
    assert quota.limits == (Limit(100, 60), Limit(5, 1, burst=9))
    assert quota.concurrency == 3
    assert repr(quota) == "BackendQuota('100/min', '5/s burst 9', concurrency=3)"


def test_quota_without_limits():
    """Without limits the concurrency of 32 is all; None is no cap."""
    assert BackendQuota() == BackendQuota(concurrency=32)
    assert BackendQuota(concurrency=None).concurrency is None


@pytest.mark.parametrize("concurrency", [0, -1, 1.0, True, "3", float("inf"), LARGEST + 1], ids=repr)
def test_wrong_concurrency(concurrency):
    """Concurrency is an integer from 1, or None."""
    with pytest.raises(ConfigError) as caught:
        BackendQuota("5/s", concurrency=concurrency)
    assert str(caught.value) == f"concurrency={concurrency!r}: give an integer from 1 to 4294967295, or None for no cap"
    assert (caught.value.option, caught.value.value) == ("concurrency", concurrency)


def test_text_as_quota_of_a_backend():
    """A backend takes a text for its quota; an empty one is a mistake, not the absence of limits."""
    backend = Backend("api", lambda request: None, "5/s")
    assert backend.quota == BackendQuota("5/s")
    assert Backend("api", lambda request: None).quota == BackendQuota()
    with pytest.raises(ConfigError) as caught:
        Backend("api", lambda request: None, "")
    assert (caught.value.option, caught.value.value) == ("quota", "")


# ---- As values


@pytest.mark.parametrize("value", [Limit(5, 60), BackendQuota("5/min")])
def test_frozen(value):
    """Nothing about a limit or a quota can be changed, added or removed."""
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(value, field.name)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        value.other = 1


@given(limits, limits)
def test_equality_and_hash(first, second):
    """Limits that say the same are equal and hash alike; quotas too."""
    fields = [dataclasses.astuple(limit) for limit in (first, second)]
    assert (first == second) == (fields[0] == fields[1])
    again = Limit(first.amount, first.period, kind=None if first.guessed else first.kind, burst=first.burst)
    assert again == first
    assert hash(again) == hash(first)
    assert BackendQuota(first, second) == BackendQuota(again, second)
    assert hash(BackendQuota(first, second)) == hash(BackendQuota(again, second))
    assert first != first.name
