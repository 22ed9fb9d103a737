"""What every command line is checked for, on a verb of its own."""

import pytest

from vitlab.commands.arguments import CONFIG, Argument, Option, Verb, parse
from vitlab.errors import InputError

VERB = Verb(
    "bake",
    ("ACTION CAKE ...",),
    "Bakes.",
    (
        Argument("ACTION", "what", {"bake": "in an oven", "eat": "with a fork"}),
        Argument("CAKE", "which", repeated=True),
    ),
    (
        Option(
            "degrees", "COUNT", "how hot", number=int, least=50, most=250, default=180, of="bake"
        ),
        Option("share", "PART", "how much", number=float, most=1, of="eat"),
        Option("with", "WHAT,...", "what goes along", {"cream": "", "tea": ""}, several=True),
        Option("for", "WHOM", "who gets it, such as me", required=True),
        Option("slowly", "", "takes time"),
    ),
    ("vitlab bake bake plum --for me", "vitlab bake eat plum --for me"),
)


def given(line):
    return parse(VERB, line.split())


def test_flags_and_options_stand_anywhere():
    found = given("--quiet bake --for me plum --slowly apple --json --with=tea,cream")
    assert found == given("bake plum apple --for=me --with tea,cream --slowly --quiet --json")
    assert found.plain == ["bake", "plum", "apple"]
    assert found.options == {"for": "me", "slowly": True, "with": "tea,cream", "degrees": 180}
    assert (found.quiet, found.json) == (True, True)
    assert given("eat plum --for me").quiet is False


def test_numbers_are_numbers_and_defaults_are_of_their_action():
    assert given("bake plum --for me --degrees 200").options["degrees"] == 200
    assert given("eat plum --for me --share 0.5").options == {"for": "me", "share": 0.5}
    assert given("eat plum --for -1").options["for"] == "-1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "vitlab bake needs ACTION and CAKE, such as vitlab bake bake plum --for me"),
        ("eat", "vitlab bake needs CAKE, such as vitlab bake eat plum --for me"),
        ("eet plum", "there is no action 'eet'; did you mean 'eat'?"),
        ("eat plum", "vitlab bake needs --for WHOM, such as vitlab bake bake plum --for me"),
        ("eat plum --for", "argument --for needs a value: WHOM, who gets it, such as me"),
        ("eat plum --for --quiet", "argument --for needs a value"),
        ("eat plum --with", "argument --with needs a value: cream or tea"),
        ("eat plum --with tea,creme", "--with is 'creme' but must be cream or tea; did you mean"),
        ("eat plum --dgrees 3", "argument --dgrees does not exist; did you mean '--degrees'?"),
        ("eat plum --slow", "did you mean '--slowly'?"),
        ("eat plum -q", "argument -q does not exist; did you mean '--quiet'?"),
        ("eat plum --zzz", "choose from --degrees, --for, --help, --json, --quiet, --share"),
        ("eat plum --for me --degrees 90", "--degrees is of vitlab bake bake: leave it out"),
        ("bake plum --degrees 300", "is '300' but must be a whole number from 50 to 250"),
        ("bake plum --degrees 99.5", "is '99.5' but must be a whole number from 50 to 250"),
        ("bake plum --degrees hot", "must be a whole number"),
        ("eat plum --share nan", "--share is 'nan' but must be a number from 0 to 1"),
        ("eat plum --share true", "--share is 'true' but must be a number from 0 to 1"),
        ("eat plum --quiet=no", "argument --quiet takes no value: leave out =no"),
    ],
)
def test_mistakes_say_what_would_be_right(line, said):
    with pytest.raises(InputError) as error:
        given(line)
    assert said in str(error.value)


def test_too_many_arguments_are_counted():
    one = Verb("eat", ("CAKE",), "Eats.", VERB.arguments[1:], (), ("vitlab eat plum",))
    assert parse(one, ["a", "b"]).plain == ["a", "b"]
    single = Verb("eat", ("CAKE",), "Eats.", (Argument("CAKE", "which"),), (), one.examples)
    with pytest.raises(InputError, match="'b' is one argument too many: vitlab eat takes CAKE, su"):
        parse(single, ["a", "b"])


def test_overrides_of_a_config_are_kept_in_order():
    verb = Verb("weigh", ("--config FILE",), "Weighs.", (), CONFIG, ("vitlab weigh --config a.py",))
    line = "--config a.py:big --config.seed=1 --config.model.name vit --config.seed=2"
    found = parse(verb, line.split()).options
    overrides = [("seed", "1"), ("model.name", "vit"), ("seed", "2")]
    assert found == {"config": "a.py:big", "config.KEY": overrides}
    with pytest.raises(InputError, match="argument --confg.seed=1 does not exist"):
        parse(verb, ["--config", "a.py", "--confg.seed=1"])
