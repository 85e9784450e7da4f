"""Recipes: presets, round trips, `--set`, and every message a user can get."""

import re
import warnings
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datafree.recipe import (
    Gptq,
    LayerRule,
    Nearest,
    Recipe,
    RecipeError,
    RoundingRecipe,
    SignalRecipe,
    StraightThrough,
    presets,
)

PRESETS = pytest.mark.parametrize("name", presets())

bits = st.none() | st.integers(2, 8)
weights = {"bits": bits, "per": st.sampled_from(["tensor", "channel"]), "symmetric": st.booleans()}
solve = (
    st.fixed_dictionaries({"method": st.just("nearest")}, optional={"clip": st.booleans()})
    | st.fixed_dictionaries({"method": st.just("gptq")}, optional={"damping": st.floats(1e-12, 10)})
    | st.fixed_dictionaries({"method": st.just("straight_through")}, optional={"lr": st.floats(1e-12, 10)})
)
shares = st.floats(0, 1, exclude_max=True)
prune = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "scope": st.sampled_from(["global", "layer"]),
        "score": st.sampled_from(["output", "magnitude"]),
        "steps": st.integers(1, 99),
    },
).flatmap(
    lambda fields: st.one_of(
        st.just(fields),
        st.builds(lambda share: {**fields, "sparsity": share}, shares),
        st.builds(lambda n, more: {**fields, "pattern": f"{n}:{n + more}"}, st.integers(1, 99), st.integers(1, 99)),
    )
)
rules = st.just("keep") | st.fixed_dictionaries(
    {},
    optional={
        "weights": st.fixed_dictionaries({}, optional=weights),
        "prune": st.fixed_dictionaries({}, optional={"sparsity": shares}),
    },
)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "signal": st.fixed_dictionaries({"images": st.integers(1, 10**6)}),
        "equalize": st.sampled_from(["free", "foldable", "between", "rows", "depthwise", "off", False]),
        "weights": st.fixed_dictionaries({}, optional=weights),
        "activations": st.fixed_dictionaries({"bits": bits}),
        "prune": prune,
        "solve": solve,
        "first_last": st.sampled_from([8, "same"]),
        "layers": st.dictionaries(st.sampled_from(["*", "off", "1", "a.b: c", "layer1.0.*"]) | st.text(), rules),
    },
)


# Presets and files


@PRESETS
def test_preset_loads_and_comes_back_from_its_own_text(name):
    recipe = Recipe.preset(name)
    assert Recipe.parse(recipe.dump()) == recipe
    assert Recipe.parse(recipe.dump()).dump() == recipe.dump()


@pytest.mark.parametrize("name", [name for name in presets() if re.search(r"w\da\d", name)])
def test_preset_is_what_its_name_says(name):
    recipe = Recipe.preset(name)
    found = re.search(r"w(\d)a(\d)", name)
    assert (recipe.weights.bits, recipe.activations.bits) == tuple(map(int, found.groups()))
    assert recipe.first_last == ("same" if "tensor" in name or "paper" in name else 8)
    if name.startswith("paper"):
        assert (recipe.signal.kind, recipe.equalize, recipe.solve.method) == ("gaussian", "free", "straight_through")
    else:
        assert recipe.weights.per == ("tensor" if "tensor" in name else "channel")


def test_presets_are_listed_widest_first_and_the_papers_last():
    names = presets()
    assert names[0] == "w8a8" and names.index("w4a8") < names.index("w4a4") < names.index("w3a3")
    papers = [n for n in names if n.startswith("paper")]
    assert papers == names[-len(papers) :] and papers.index("paper-w8a8") < papers.index("paper-w4a8")


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(RecipeError, match=r"there is no preset 'w7a9'; presets are w8a8, .*paper-w4a8") as caught:
        Recipe.preset("w7a9")
    assert all(name in str(caught.value) for name in presets())
    assert "or give a .yaml file" in str(caught.value)


def test_file_is_read(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("weights: {bits: 3}\nlayers: {fc: keep}\n")
    recipe = Recipe.load(file)
    assert recipe == Recipe.load(str(file)) == Recipe(weights={"bits": 3}, layers={"fc": "keep"})


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"], ids=["empty", "comment", "braces"])
def test_text_without_keys_is_the_default(text):
    assert Recipe.parse(text) == Recipe()


@pytest.mark.parametrize("name, reason", [("missing.yaml", "No such file"), (".", "Is a directory")])
def test_file_that_cannot_be_read_is_named(tmp_path, name, reason):
    path = tmp_path / name
    with pytest.raises(RecipeError, match=f"cannot read the recipe {re.escape(str(path))}: {reason}.*preset"):
        Recipe.load(path)


def test_file_that_is_not_text_is_named(tmp_path):
    file = tmp_path / "net.pth"
    file.write_bytes(b"\x80\x02\x8a\xff")
    with pytest.raises(RecipeError, match=re.escape(str(file))):
        Recipe.load(file)


@pytest.mark.parametrize("text", ["weights: [", "a: b: c", "{", "\t- x", "weights: {bits: 4"])
def test_text_that_is_not_yaml_is_one_line(text, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=f"{re.escape(str(file))} is not YAML: ") as caught:
        Recipe.load(file)
    assert "\n" not in str(caught.value) and "line 1" in str(caught.value)


@pytest.mark.parametrize("text, kind", [("- 1", "list"), ("w4a8", "str"), ("3", "int"), ("2.5", "float")])
def test_text_that_is_not_a_mapping_is_refused(text, kind):
    with pytest.raises(RecipeError, match=rf"recipe holds a {kind}; a recipe is a mapping such as 'weights"):
        Recipe.parse(text)


@pytest.mark.parametrize("text", ["1: 2", "on: {bits: 4}", "null: 3"])
def test_key_that_is_not_a_string_is_an_unknown_key(text):
    with pytest.raises(RecipeError, match="unknown key; allowed here are signal"):
        Recipe.parse(text)


# Fields


@given(fields=recipes)
@settings(max_examples=50, deadline=None)
def test_every_recipe_comes_back_from_its_own_text(fields):
    recipe = Recipe(**fields)
    assert Recipe.parse(recipe.dump()) == recipe
    assert recipe.updated([]) == recipe


@pytest.mark.parametrize("text, value", [("off", "off"), ("'off'", "off"), ("false", "off"), ("free", "free")])
def test_equalize_off_is_no_boolean(text, value):
    assert Recipe.parse(f"equalize: {text}").equalize == value
    assert Recipe().updated([f"equalize={text}"]).equalize == value
    assert yaml.safe_load(Recipe(equalize="off").dump())["equalize"] == "off"


def test_number_without_a_point_is_a_number():
    assert Recipe.parse("solve: {method: straight_through, lr: 1e-3}").solve.lr == 0.001  # a string in YAML 1.1


@pytest.mark.parametrize(
    "text, kind",
    [("nearest", Nearest), ("gptq", Gptq), ("straight_through", StraightThrough)],
    ids=["nearest", "gptq", "straight_through"],
)
def test_method_brings_its_own_fields(text, kind):
    assert isinstance(Recipe(solve={"method": text}).solve, kind)


@pytest.mark.parametrize(
    "text, path, allowed",
    [
        ("wieghts: {bits: 4}", "wieghts", "signal, equalize, slim, weights, activations, prune"),
        ("weights: {bit: 4}", "weights.bit", "bits, per, symmetric"),
        ("activations: {symmetric: true}", "activations.symmetric", "bits, per"),
        ("signal: {steps: 3}", "signal.steps", "probes, images, kind"),
        (
            "solve: {method: straight_through, damping: 1}",
            "solve.*damping",
            "sequential, compensation, mend, method, steps, rows, lr",
        ),
        ("solve: {method: gptq, steps: 1}", "solve.*steps", "sequential, compensation, mend, method, damping"),
        (
            "solve: {method: nearest, lr: 1}",
            "solve.*lr",
            "sequential, compensation, mend, method, bias_correction, clip",
        ),
        ("layers: {fc: {bits: 4}}", "layers.fc.*bits", "weights, activations"),
        ("layers: {fc: {weights: {bit: 4}}}", "layers.fc.*weights.bit", "bits, per, symmetric"),
    ],
)
def test_unknown_key_names_its_path_and_what_is_allowed(text, path, allowed):
    with pytest.raises(RecipeError, match=rf"^recipe: {path}: unknown key; allowed here are {allowed}") as caught:
        Recipe.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("weights: {bits: 1}", "weights.bits: .* greater than or equal to 2, got 1"),
        ("weights: {bits: 9}", "weights.bits: .* less than or equal to 8, got 9"),
        ("weights: {bits: 4.5}", "weights.bits: .*integer.*, got 4.5"),
        ("activations: {bits: 16}", "activations.bits: .* less than or equal to 8, got 16"),
        ("weights: {per: row}", "weights.per: .*'tensor' or 'channel', got 'row'"),
        ("activations: {per: channel}", "activations.per: .*'tensor', got 'channel'"),
        ("signal: {images: 0}", "signal.images: .*greater than or equal to 1, got 0"),
        ("signal: {kind: real}", "signal.kind: .*'gaussian', 'propagated'.*'loader', got .*'real'"),
        ("signal: ", "signal: .*dictionary.*got None"),
        ("equalize: on", "equalize: .*'free', 'foldable', 'between', 'rows', 'depthwise' or 'off', got True"),
        ("first_last: nine", "first_last: .*8 or 'same', got 'nine'"),
        ("solve: {method: gptq, damping: 0}", "solve.*damping: .*greater than 0, got 0"),
        ("solve: {method: straight_through, steps: 0}", "solve.*steps: .*greater than or equal to 1, got 0"),
        ("solve: {method: straight_through, lr: -1}", "solve.*lr: .*greater than 0, got -1"),
        ("solve: {method: magic}", r"solve.method: .*'nearest', 'gptq', 'straight_through'"),
        (
            "layers: {fc: {weights: {bits: 1}}}",
            "layers.fc.*weights.bits: .*greater than or equal to 2, got 1",
        ),
        ("layers: {fc: {activations: {bits: 9}}}", "layers.fc.*activations.bits: .*less than or equal to 8"),
        ("layers: {fc: drop}", "layers.fc.*'keep', got 'drop'"),
        ("layers: [fc]", r"layers: .*dictionary, got \['fc'\]"),
        ("prune: {sparsity: 1}", "prune.sparsity: .*less than 1, got 1"),
        ("prune: {sparsity: -0.1}", "prune.sparsity: .*greater than or equal to 0, got -0.1"),
        ("prune: {sparsity: half}", "prune.sparsity: .*number.*, got 'half'"),
        ("prune: 0.5", "prune: .*dictionary.*, got 0.5"),
        ("prune: {scope: model}", "prune.scope: .*'global' or 'layer', got 'model'"),
        ("prune: {score: random}", "prune.score: .*'output' or 'magnitude', got 'random'"),
        ("prune: {steps: 0}", "prune.steps: .*greater than or equal to 1, got 0"),
        ("prune: {pattern: blocky}", "prune.pattern: .*unstructured.*, got 'blocky'"),
        ("prune: {pattern: '0:4'}", "prune.pattern: .*unstructured.*, got '0:4'"),
        ("prune: {pattern: '2:4:8'}", "prune.pattern: .*unstructured.*, got '2:4:8'"),
        ("prune: {pattern: '4:2'}", "prune: .*pattern '4:2' keeps 4 of 2; write n:m with n < m, as 2:4"),
        ("prune: {pattern: '2:2'}", "prune: .*pattern '2:2' keeps 2 of 2; write n:m with n < m, as 2:4"),
        (
            "prune: {pattern: '2:4', sparsity: 0.7}",
            "prune: .*pattern '2:4' is a sparsity of 0.5, not 0.7; leave one out",
        ),
        ("layers: {fc: {prune: {sparsity: 1.5}}}", "layers.fc.prune.sparsity: .*less than 1, got 1.5"),
    ],
)
def test_value_out_of_range_names_its_path_and_itself(text, message):
    with pytest.raises(RecipeError, match=f"^recipe: {message}") as caught:
        Recipe.parse(text)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(RecipeError, match=r"weights\.bits: .*; activations\.bit: unknown key"):
        Recipe(weights={"bits": 1}, activations={"bit": 4})


@pytest.mark.parametrize(
    "text, message",
    [
        ("layers: {fc: {weights: {bits: 1}}}", "layers.fc.weights.bits: Input .* to 2, got 1"),
        ("layers: {fc: drop}", "layers.fc: .*'keep'.*"),
    ],
    ids=["rule", "word"],
)
def test_path_is_the_users(text, message):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert re.fullmatch(f"recipe: {message}", str(caught.value))


def test_layer_rule_keeps_only_what_was_given():
    recipe = Recipe(layers={"a": {"weights": {"bits": None}}, "b*": "keep"})
    assert recipe.layers["a"] == LayerRule(weights={"bits": None}) and recipe.layers["b*"] == "keep"
    assert list(recipe.layers) == ["a", "b*"] and recipe.layers["a"].given() == {"weights": {"bits": None}}


@pytest.mark.parametrize(
    "fields",
    [None, {}, {"sparsity": 0.3}, {"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "5:7", "score": "magnitude"},
     {"pattern": "2:4", "sparsity": 0.5}, {"sparsity": 0.9, "scope": "layer", "steps": 3}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_pruning_comes_back_from_its_own_text(fields):
    recipe = Recipe(prune=fields, layers={"fc": {"prune": {"sparsity": 0.1}}, "b*": {"prune": {}}})
    again = Recipe.parse(recipe.dump())
    assert again == recipe and again.dump() == recipe.dump() and again.updated([]) == recipe
    assert again.layers["fc"].given() == {"prune": {"sparsity": 0.1}} and again.layers["b*"].given() == {}


def test_an_nm_pattern_says_how_sparse():
    assert Recipe(prune={"pattern": "1:4"}).prune.sparsity == 0.75
    assert Recipe(prune={"pattern": "2:3"}).prune.sparsity == pytest.approx(1 / 3)
    assert (Recipe(prune={"pattern": "12:16"}).prune.cell, Recipe(prune={}).prune.cell) == ((12, 16), None)
    assert Recipe(prune={}).prune.sparsity == 0.5 and Recipe().prune is None


@pytest.mark.parametrize("change", [("weights", None), ("solve", None), ("first_last", "same"), ("new", 1)])
def test_recipe_is_frozen(change):
    recipe = Recipe(layers={"fc": {"weights": {"bits": 8}}})
    with pytest.raises(ValidationError):
        setattr(recipe, *change)
    for part in (recipe.signal, recipe.weights, recipe.activations, recipe.solve, recipe.layers["fc"]):
        with pytest.raises(ValidationError):
            setattr(part, next(iter(type(part).model_fields)), 4)


# Settings


@pytest.mark.parametrize(
    "settings, expected",
    [
        ([], {}),
        (["weights.bits=3"], {"weights": {"bits": 3}}),
        (["weights.bits=null"], {"weights": {"bits": None}}),
        (["weights={bits: 3}"], {"weights": {"bits": 3}}),
        (["weights.bits=5", "first_last=same", "weights.bits=6"], {"weights": {"bits": 6}, "first_last": "same"}),
        (["weights.symmetric=yes"], {"weights": {"symmetric": True}}),
        (["signal.kind=gaussian", "first_last=same"], {"signal": {"kind": "gaussian"}, "first_last": "same"}),
        (["solve.damping=0.5"], {"solve": {"method": "gptq", "damping": 0.5}}),
        (["solve.method=straight_through"], {"solve": {"method": "straight_through"}}),
        (["solve.method=straight_through", "solve.steps=7"], {"solve": {"method": "straight_through", "steps": 7}}),
        (["solve={method: straight_through, rows: 9}"], {"solve": {"method": "straight_through", "rows": 9}}),
        (["prune.sparsity=0.7"], {"prune": {"sparsity": 0.7}}),
        (["prune={sparsity: 0.7}", "prune.scope=layer"], {"prune": {"sparsity": 0.7, "scope": "layer"}}),
        (["prune.pattern='2:4'"], {"prune": {"pattern": "2:4"}}),
        (["prune.sparsity=0.7", "prune=null"], {}),
        (["layers.a.b.prune.sparsity=0.1"], {"layers": {"a.b": {"prune": {"sparsity": 0.1}}}}),
        (["layers.fc=keep"], {"layers": {"fc": "keep"}}),
        (["layers.fc.weights.bits=8"], {"layers": {"fc": {"weights": {"bits": 8}}}}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_settings_are_applied_in_order(settings, expected):
    recipe = Recipe()
    assert recipe.updated(settings) == Recipe(**expected)
    assert recipe == Recipe()


def test_settings_leave_the_rest_of_the_preset():
    before = Recipe.preset("paper-w4a8")
    after = before.updated(["weights.bits=3"])
    assert after.weights.bits == 3 and after.weights.per == "tensor"
    assert after.updated(["weights.bits=4"]) == before


@pytest.mark.parametrize(
    "setting, message",
    [
        ("weights.bits", "setting 'weights.bits' has no '='; write it as weights.bits=3"),
        ("signal.kind.x=1", "signal.kind.x: kind is a value, not a section of the recipe"),
        ("weights.bits=9", "weights.bits: .*less than or equal to 8, got 9"),
        ("weights.bit=4", "weights.bit: unknown key; allowed here are bits, per, symmetric"),
        ("wieghts.bits=4", "wieghts: unknown key; allowed here are signal"),
        ("solve.method=magic", r"solve.method: .*'nearest', 'gptq', 'straight_through'"),
        (
            "solve.steps=3",
            "solve.*steps: unknown key; allowed here are sequential, compensation, mend, method, damping",
        ),
        ("weights=4", "weights: .*dictionary.*got 4"),
    ],
)
def test_setting_that_cannot_be_applied_says_why(setting, message):
    with pytest.raises(RecipeError, match=message):
        Recipe().updated([setting])


def test_setting_that_is_not_yaml_says_so():
    with pytest.raises(RecipeError, match=r"weights\.bits"):
        Recipe().updated(["weights.bits=["])


def test_method_may_be_set_last():
    assert Recipe().updated(["solve.steps=7", "solve.method=straight_through"]).solve == StraightThrough(steps=7)


def test_layer_with_dots_in_its_name_can_be_set():
    expected = Recipe(layers={"layer1.0.conv1": {"weights": {"bits": 8}}})
    assert Recipe().updated(["layers.layer1.0.conv1.weights.bits=8"]) == expected


def test_all_layer_rules_can_be_set_at_once():
    assert Recipe().updated(["layers={fc: keep}"]) == Recipe(layers={"fc": "keep"})


# Pruning


@pytest.mark.parametrize("pattern", ["2:4", "1:2", "4:8", "16:32"])
def test_a_pattern_needs_no_quotes(pattern):
    """2:4 is the number 124 in YAML 1.1, base 60."""
    assert Recipe.parse(f"prune: {{pattern: {pattern}}}").prune.pattern == pattern
    assert Recipe().updated([f"prune.pattern={pattern}"]).prune.pattern == pattern


def test_another_pattern_brings_its_own_sparsity():
    assert Recipe(prune={"pattern": "2:4"}).updated(["prune.pattern='1:4'"]).prune.sparsity == 0.75


@pytest.mark.parametrize(
    "text, path, allowed",
    [
        ("prune: {sparsty: 0.5}", "prune.sparsty", "sparsity, pattern, scope, score, steps, probes"),
        ("layers: {fc: {prune: {steps: 3}}}", "layers.fc.prune.steps", "sparsity"),
    ],
)
def test_unknown_key_of_pruning_names_what_is_allowed_there(text, path, allowed):
    with pytest.raises(RecipeError, match=rf"^recipe: {path}: unknown key; allowed here are {allowed}$"):
        Recipe.parse(text)


@pytest.mark.parametrize(
    "old, new",
    [
        ("solve: {method: closed, damping: 0.1}", "solve: {method: gptq, damping: 0.1}"),
        ("solve: {method: sgd}", "solve: {method: straight_through}"),
        ("ends: alike", "first_last: same"),
        ("ends: eight", "first_last: 8"),
    ],
)
def test_old_spellings_are_read_with_a_warning(old, new):
    with pytest.warns(FutureWarning, match="is now called .*; please change the recipe"):
        assert Recipe.parse(old) == Recipe.parse(new)


@pytest.mark.parametrize(
    "old, new", [("solve.method=sgd", "solve.method=straight_through"), ("ends=alike", "first_last=same")]
)
def test_old_spellings_are_set_with_a_warning(old, new):
    preset = Recipe.preset("w4a8")
    with pytest.warns(FutureWarning, match="is now called"):
        assert preset.updated([old]) == preset.updated([new])


def test_a_value_that_never_was_is_refused_under_the_new_name():
    with pytest.warns(FutureWarning), pytest.raises(RecipeError, match=r"first_last: .*8 or 'same'"):
        Recipe.parse("ends: both")


@pytest.mark.parametrize("text", ["ends: [8]", "solve: {method: [gptq]}"])
def test_a_list_where_a_word_belongs_is_a_recipe_error(text):
    with warnings.catch_warnings(), pytest.raises(RecipeError, match=r"^recipe: (first_last|solve)"):
        warnings.simplefilter("ignore")
        Recipe.parse(text)


# Kinds that others define


@pytest.fixture
def own_kinds():
    """Whatever a test defines is gone after it."""
    before = {part: dict(part.kinds) for part in (SignalRecipe, RoundingRecipe)}
    yield
    for part, kinds in before.items():
        part.kinds.clear()
        part.kinds.update(kinds)


def define_coin():
    class Coin(RoundingRecipe):
        method: Literal["coin"] = "coin"
        tosses: int = 3

    return Coin


def test_a_kind_defined_elsewhere_is_chosen_like_any_other(own_kinds):
    Coin = define_coin()
    recipe = Recipe.parse("solve: {method: coin, tosses: 5}")
    assert recipe.solve == Coin(tosses=5) and Recipe.parse(recipe.dump()) == recipe
    assert Recipe(solve=Coin()).updated(["solve.tosses=7", "solve.sequential=true"]).solve == Coin(
        tosses=7, sequential=True
    )
    assert Recipe().updated(["solve.method=coin"]).solve == Coin()
    with pytest.raises(RecipeError, match=r"solve.steps: unknown key; allowed here are .*, method, tosses$"):
        Recipe(solve={"method": "coin", "steps": 3})
    with pytest.raises(RecipeError, match="'adaround', 'coin', got 'dice'"):
        Recipe(solve={"method": "dice"})


def test_a_file_that_runs_again_defines_the_same_kind(own_kinds):
    define_coin()
    again = define_coin()
    assert type(Recipe(solve={"method": "coin"}).solve) is again


def test_a_name_that_is_taken_is_refused(own_kinds):
    with pytest.raises(RecipeError, match=r"Mine: method 'gptq' is that of datafree\S*\.Gptq; choose another name"):

        class Mine(Gptq):
            pass

    assert Recipe.parse("solve: {method: gptq}").solve == Gptq()


@pytest.mark.parametrize("fields", [{}, {"kind": "mine"}], ids=["nothing", "plain string"])
def test_a_kind_without_a_name_is_refused(own_kinds, fields):
    with pytest.raises(RecipeError, match='Mine has no name; give it one, as kind: Literal\\["name"\\] = "name"'):
        type("Mine", (SignalRecipe,), {**fields, "__annotations__": dict.fromkeys(fields, str), "__module__": __name__})
