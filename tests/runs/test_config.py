"""Settings: layers over one another, types, ranges, and errors that say where the fault is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mhr.errors import ConfigError
from mhr.few_shot.shots import shots_of
from mhr.methods import BY_TOKEN, METHODS
from mhr.runs.config import Said, all_settings, dump_config, load_config, presets, to_dict
from mhr.runs.train_settings import TrainConfig


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("preset: superni\ntrain: {lr: 2e-3, steps: 7}\n")
    config = load_config(file, overrides=["train.steps=8", "adapter.rank=3"], rank=2)
    assert (config.adapter.rank, config.train.steps, config.train.lr, config.train.clip) == (2, 8, 2e-3, 0.1)
    assert load_config(file, preset="crossfit").method == "poly"


def test_the_methods_that_are_named_instead_take_the_adapter() -> None:
    with pytest.raises(ConfigError, match="or choose ") as caught:
        load_config(method="film", adapter="lora")
    named = str(caught.value).rpartition("or choose ")[2].split(", ")
    assert "mhr" in named
    assert not any(METHODS[method].routing in BY_TOKEN for method in named)
    for method in named:
        assert load_config(method=method, adapter="lora").adapter.adapter == "lora"


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_dump_to_what_they_were(name: str, tmp_path: Path) -> None:
    config = load_config(preset=name)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert presets()[name]


def test_preset_values_are_those_of_the_papers() -> None:
    t0, superni, crossfit = (load_config(preset=name) for name in ("t0", "superni", "crossfit"))
    assert (t0.adapter.n_heads, t0.adapter.n_skills, t0.adapter.rank, t0.adapter.noise) == (64, 8, 1, "off")
    assert (t0.train.optimizer, t0.train.steps, t0.train.batch_size, t0.train.accumulation) == (
        "adafactor",
        100000,
        8,
        2,
    )
    assert (superni.adapter.rank, superni.adapter.noise, superni.train.clip) == (16, "per_example", 0.1)
    assert (superni.train.warmup_steps, superni.train.label_smoothing) == (1500, 0.1)
    assert (crossfit.model, crossfit.method, crossfit.adapter.n_heads) == ("facebook/bart-large", "poly", 1)
    assert t0.train.warmup_steps == 6000
    assert t0.adapt.seeds == [42, 1024, 0]
    assert (t0.adapt.length_norm, t0.adapt.mc_loss, t0.adapt.unlikely_loss) == (1, 1, 1)
    shots = [shots_of(t0.adapt, name) for name in ("rte", "winogrande_xl", "story_cloze_2016", "hellaswag", "h-swag")]
    assert shots == [32, 50, 70, 20, 20]
    assert superni.adapt.grid == crossfit.adapt.grid == {"lr": [1e-3, 1e-4], "router_lr": [0.5, 0.1]}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_dumps_and_loads(method: str, tmp_path: Path) -> None:
    config = load_config(method=method)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert ("adapter" in to_dict(config)) == (method != "full")


def test_epochs_take_the_place_of_steps_of_earlier_layers_and_the_other_way_round(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {epochs: 2.5}\n")
    config = load_config(file, preset="t0")
    assert config.train.epochs == 2.5
    assert to_dict(config)["train"]["epochs"] == 2.5
    assert "steps" not in to_dict(config)["train"]
    assert load_config(file, steps=7).train.epochs is None
    assert load_config(file, steps=7).train.steps == 7
    assert load_config(preset="t0", overrides=["train.epochs=none"]).train.steps == 100000
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    flags = {"train.steps": Said(4, "--steps"), "train.eval_every": Said(2, "--eval-every")}
    left_out = [f"train.{name}={word}" for name in ("epochs", "eval_every_epochs") for word in ("null", "none")]
    train = load_config(preset="glue-adamix", overrides=left_out, flags=flags).train
    assert (train.steps, train.epochs, train.eval_every, train.eval_every_epochs) == (4, None, 2, None)


def test_epochs_become_steps_by_what_a_step_draws() -> None:
    train = load_config(epochs=3, batch_size=4, accumulation=2).train
    assert train.lasting(80).steps == 30
    assert train.lasting(81).steps == 31
    assert train.lasting(81, processes=2).steps == 16
    assert train.lasting(81).epochs is None
    assert replace(train, epochs=0.1).lasting(240).steps == 3  # 0.1 * 240 is above 24 in floating point
    assert replace(train, epochs=1e-6).lasting(240).steps == 1
    plain = load_config(steps=7).train
    assert plain.lasting(80) is plain
    with pytest.raises(ConfigError, match="anneal_to_mu is 31, but the run has 30 steps"):
        load_config(epochs=3, batch_size=8, anneal_to_mu=31).train.lasting(80)


def test_validations_may_be_counted_in_epochs(tmp_path: Path) -> None:
    train = load_config(epochs=3, batch_size=4, accumulation=2, eval_every_epochs=1, keep_best=True).train
    assert (train.eval_every, train.validates) == (0, True)
    found = train.lasting(81)
    assert (found.steps, found.eval_every, found.eval_every_epochs) == (31, 11, None)
    assert train.lasting(81, processes=2).eval_every == 6
    assert replace(train, eval_every_epochs=0.5).lasting(80).eval_every == 5
    assert load_config(steps=100, batch_size=8, eval_every_epochs=1).train.lasting(80).eval_every == 10
    config = load_config(eval_every_epochs=2)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(tmp_path / "config.yaml", eval_every=7).train.eval_every_epochs is None
    with pytest.raises(ConfigError, match="eval_every_epochs is 1, and eval_every is 5: give one of them"):
        TrainConfig(eval_every=5, eval_every_epochs=1)
    with pytest.raises(ConfigError, match="--set: train.eval_every_epochs is 1 and train.eval_every is 5: give one"):
        load_config(overrides=["train.eval_every=5", "train.eval_every_epochs=1"])


def test_both_epochs_and_steps_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {epochs: 2, steps: 1000}\n")
    told = "train.epochs is 2 and train.steps is 1000: give one of them"
    with pytest.raises(ConfigError, match=f"recipe.yaml: {told}"):
        load_config(file)
    flags = {"train.steps": Said("1000", "--steps")}
    with pytest.raises(ConfigError, match=f"--steps: {told}"):
        load_config(overrides=["train.epochs=2"], flags=flags)
    with pytest.raises(ConfigError, match="epochs is 2, and steps is 5: give one of them"):
        TrainConfig(epochs=2, steps=5)


def test_another_method_drops_what_belonged_to_the_preset_s() -> None:
    assert load_config(preset="t0", method="poly").adapter.n_heads == 1
    assert load_config(preset="superni", method="lora").adapter.noise == "off"
    assert load_config(preset="superni", method="lora").adapter.rank == 16
    assert load_config(preset="t0", method="full").adapter is None


def test_what_set_says_does_not_leave_with_the_method_of_the_preset() -> None:
    """The flag --method is read after --set, and is not to take back what was asked for beside it."""
    config = load_config(preset="t0", overrides=["adapter.n_skills=3", "adapter.targets=[q]"], method="adamix-lora")
    assert (config.adapter.n_skills, config.adapter.targets) == (3, ["q"])
    assert load_config(overrides=["adapter.targets=[wo]"], method="adamix").adapter.targets == ["wo"]
    with pytest.raises(ConfigError, match="--set: adapter.n_heads is 4, but poly has 1 head"):
        load_config(preset="t0", overrides=["adapter.n_heads=4"], method="poly")


def test_sharing_is_up_for_what_is_drawn_and_none_means_none(tmp_path: Path) -> None:
    for method, share in (("adamix", "up"), ("adamix-lora", "up"), ("mhr", "none"), ("private", "none")):
        assert load_config(method=method).adapter.share == share
        assert load_config(method=method, overrides=["adapter.share=null"]).adapter.share == share
    config = load_config(method="adamix", overrides=["adapter.share=none"])
    assert config.adapter.share == "none"
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_values_are_converted() -> None:
    config = load_config(
        overrides=[
            "train.lr=1e-4",
            "train.steps=1e5",
            "adapter.noise=off",
            "train.precision=no",
            "data.fit=true",
            "data.max_per_task=none",
            "adapt.seeds=1,2",
            "adapter.targets=[q, v]",
            "data.column_map={input: question}",
        ]
    )
    assert (config.train.lr, config.train.steps, config.train.precision) == (1e-4, 100000, "no")
    assert (config.adapter.noise, config.adapter.targets) == ("off", ["q", "v"])
    assert (config.data.fit, config.data.max_per_task, config.data.column_map) == (True, None, {"input": "question"})
    assert config.adapt.seeds == [1, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lerning_rate: 1}", r"recipe.yaml: unknown key 'train.lerning_rate'"),
        ("trian: {lr: 1}", r"recipe.yaml: unknown key 'trian'.*'train'"),
        ("lr: 1", r"recipe.yaml: unknown key 'lr': did you mean 'train.lr'"),
        ("train: {warm_up: 1}", r"unknown key 'train.warm_up'.*'warmup'"),
        ("adapter: {method: poly}", r"'adapter.method': the setting 'method' decides it"),
        ("train: {lr: -1e-3}", r"recipe.yaml: train.lr is -0.001, expected a number above 0"),
        ("train: {lr: .nan}", r"recipe.yaml: train.lr is nan"),
        ("train: {router_lr: -1}", r"recipe.yaml: train.router_lr is -1.0"),
        ("adapter: {rank: 0}", r"recipe.yaml: adapter.rank is 0, expected an integer of at least 1"),
        ("train: {steps: 0}", r"recipe.yaml: train.steps is 0"),
        ("train: {steps: many}", r"recipe.yaml: train.steps is 'many', expected an integer"),
        ("train: {steps: 1.5}", r"expected an integer"),
        ("train: {steps: true}", r"expected an integer"),
        ("data: {fit: 1}", r"expected true or false"),
        (
            "train: {optimizer: adamv}",
            r"recipe.yaml: train.optimizer is 'adamv', expected one of adamw, adafactor, .*: did you mean 'adamw'",
        ),
        ("method: mrh", r"recipe.yaml: method is 'mrh', expected one of mhr, .*: did you mean 'mhr'"),
        ("kind: decoder", r"recipe.yaml: kind is 'decoder', expected one of seq2seq, causal, encoder"),
        ("adapt: {seeds: [1, 1]}", r"recipe.yaml: adapt.seeds is \[1, 1\]: expected each seed once"),
        ("adapt: {seeds: []}", r"adapt.seeds is empty"),
        ("method: full\nadapter: {rank: 2}", r"recipe.yaml: adapter.rank does not go with method 'full'"),
        ("method: poly\nadapter: {n_heads: 4}", r"recipe.yaml: adapter.n_heads is 4, but poly has 1 head"),
        ("train: 3", r"recipe.yaml: train is 3, expected a section"),
        ("- 1", r"recipe.yaml: expected settings"),
        ("train: {lr: 1}\ntrain: {steps: 2}", r"recipe.yaml, line 2: key 'train' is given twice"),
        ("train: {lr: 1", r"recipe.yaml, line \d"),
        ("? [train]\n: 1", r"recipe.yaml, line 1: a key is no name"),
        ("preset: t1", r"unknown preset 't1': did you mean 't0'"),
    ],
)
def test_faults_name_file_key_and_what_was_meant(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_key_is_the_name_that_is_written(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {prompt: x, verbalizers: {no: bad, 0: good, true: fine}}")
    told = load_config(file).data.verbalizers
    assert told == {"no": "bad", "0": "good", "true": "fine"}
    assert load_config(overrides=["data.verbalizers={no: bad, 0: good, true: fine}"]).data.verbalizers == told


def test_flags_are_found_without_their_section() -> None:
    assert load_config(lr=0.5, n_heads=2, max_input_length=9, kind="causal").kind == "causal"
    assert load_config(**{"data.temperature": 4}).data.temperature == 4
    with pytest.raises(ConfigError, match="'adapter.temperature' or 'data.temperature'"):
        load_config(temperature=4)
    with pytest.raises(ConfigError, match="^adapter.rank is 0"):
        load_config(rank=0)
    with pytest.raises(ConfigError, match="unknown setting 'rnak'"):
        load_config(rnak=2)
    with pytest.raises(ConfigError, match="no '='"):
        load_config(overrides=["train.lr"])
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config("missing.yaml")


def test_the_dump_is_plain_yaml() -> None:
    values = yaml.safe_load(dump_config(load_config(preset="t0")))
    assert values["adapter"]["n_heads"] == 64
    assert "method" not in values["adapter"]


def test_the_published_definition_form_shows_no_positives() -> None:
    with pytest.raises(ConfigError, match="positives is 2, but definition_form is 'published', which shows none"):
        load_config(overrides=["data.positives=2", "data.definition_form=published"])


def test_names_that_were_of_one_setting_still_are() -> None:
    """A setting of another section with the same name would make programs and sweeps that give it without a section fail."""
    names = [name.rpartition(".")[2] for name in all_settings() if not name.startswith("adapt.")]
    assert {name for name in names if names.count(name) > 1} == {"temperature"}
