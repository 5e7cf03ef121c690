"""An edit of one section of params.yaml runs that method again and what depends on it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from chestflow import dag, profiles
from chestflow.config import parse
from tests.pipeline.graph import Graph, resolve

#: Stages that pool everything.
POOLED = {"report"}
SLICES = {"slice_resnet18", "slice_moco", "multi_knowledge"}
VOLUMES = {"infection_ratio", "ds_uniform", "ds_balanced", "dual_sampling"}
XRAYS = {"covidnet_r18_d", "covidnet_r18_a", "mag_sd_r18", "ac_covidnet", "resnet18", "cxr_mean"}
MULTI_KNOWLEDGE = {"tune_tau@multi_knowledge-0", "train@multi_knowledge-0"}


def judged(*names: str) -> set[str]:
    """Of these runs and ensembles: the stages that measure and register their predictions."""
    found: set[str] = set()
    return found.union(*({f"tune@{name}-0", f"evaluate@{name}", f"register@{name}"} for name in names))


def trained(*names: str) -> set[str]:
    """Of these runs: their training, and the stages that measure and register it."""
    return {f"train@{name}-0" for name in names} | judged(*names)


def joined(name: str) -> set[str]:
    """Of an ensemble: its weights, its predictions, and what measures and registers them."""
    return {f"tune_w@{name}-0", f"ensemble@{name}-0"} | judged(name)


def masked(modality: str, recipe: str, task: str) -> set[str]:
    """What a modality's masks go into, before any training."""
    return {f"segment@{modality}", f"preprocess@{recipe}", f"shortcuts@{task}"}


OF_SLICES = masked("ct_slice", "ct_slice_96", "slice_covid_vs_rest") | trained(*SLICES) | MULTI_KNOWLEDGE
OF_SLICES |= {"pretrain@moco"}
OF_VOLUMES = masked("ct_volume", "ct_volume_48", "covid_vs_cap") | trained(*VOLUMES - {"dual_sampling"})
OF_VOLUMES |= joined("dual_sampling")
OF_XRAYS = masked("cxr", "cxr_96_clahe", "covid_vs_rest") | trained(*XRAYS - {"cxr_mean"}) | joined("cxr_mean")

#: An edited section, and every stage that the edit may run.
ALLOWED = {
    "infection.ct_slice.lr": OF_SLICES | {"infection@ct_slice"},
    "infection.ct_slice.pseudo.sets": OF_SLICES | {"infection@ct_slice"},
    "infection.ct_volume.slices.lr": OF_VOLUMES | {"infection@ct_volume"},
    "segment.ct_closing_mm": OF_VOLUMES | {"infection@ct_volume"},
    "segment.ct_prefer_source": OF_VOLUMES | {"infection@ct_volume"},
    "segment.infection_by_network": OF_VOLUMES | OF_SLICES,
    "segment.cxr_lungs.epochs": OF_XRAYS,
    "recipes.ct_volume_48.size": (OF_VOLUMES - {"segment@ct_volume"}),
    "pretraining.moco.epochs": {"pretrain@moco"} | trained("slice_moco"),
    "tau.range": MULTI_KNOWLEDGE | judged("multi_knowledge"),
    "runs.multi_knowledge.config.lr": MULTI_KNOWLEDGE | judged("multi_knowledge"),
    "runs.slice_resnet18.config.lr": trained("slice_resnet18", "multi_knowledge") | MULTI_KNOWLEDGE,
    "runs.ds_uniform.config.lr": trained("ds_uniform") | joined("dual_sampling"),
    "runs.infection_ratio.config.epsilon": trained("infection_ratio"),
    "runs.mag_sd_r18.config.lr": trained("mag_sd_r18") | joined("cxr_mean"),
    "runs.ac_covidnet.config.lr": trained("ac_covidnet"),
    "ensembles.dual_sampling.w_middle": joined("dual_sampling"),
    "ensembles.cxr_mean.weights": joined("cxr_mean"),
    "tune.trials": joined("dual_sampling") | joined("cxr_mean") | judged(*SLICES | VOLUMES | XRAYS),
}  # fmt: skip


@pytest.fixture(scope="module")
def values(repository: Path) -> dict:
    """The committed parameters with a pretraining and a run that starts from it."""
    found = yaml.safe_load((repository / "params.yaml").read_text())
    first = found["runs"]["slice_resnet18"]
    shared = {"backbone": "resnet18", "channels": first["config"]["channels"]}
    found["pretraining"] = {"moco": {"cohort": "phantom_slices", "recipe": "ct_slice_96", **shared}}
    found["runs"]["slice_moco"] = {**first, "uses": {"weights": "moco"}}
    return profiles.complete(found)


@pytest.fixture(scope="module")
def graph(repository: Path, values: dict, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return resolve(repository / "dvc.yaml", values, tmp_path_factory.mktemp("graph") / "repository")


def _has(values: dict, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


@pytest.mark.parametrize("key", ALLOWED)
def test_an_edit_touches_its_own_method_alone(graph: Graph, values: dict, key: str) -> None:
    assert _has(values, key), f"params.yaml has no {key}"
    allowed = ALLOWED[key] | POOLED
    touched = graph.touched(key)
    assert graph.readers(key), f"no stage depends on {key}"
    assert touched == allowed, f"too many: {sorted(touched - allowed)}; too few: {sorted(allowed - touched)}"


def test_the_tables_above_name_every_stage_of_a_modality(graph: Graph) -> None:
    first = ("fingerprint", "ingest@", "manifest", "validate", "split")
    before = {name for name in graph.params if name.startswith(first)}
    named = OF_SLICES | OF_VOLUMES | OF_XRAYS | {"infection@ct_slice", "infection@ct_volume"} | POOLED
    assert named == set(graph.params) - before


def test_training_takes_the_value_of_tau_and_not_its_search(graph: Graph, values: dict) -> None:
    """A new range whose search ends at the same value leaves the network as it is."""
    taken = dag.tables(parse(values))["train"]["multi_knowledge-0"]["uses"]
    assert "out/tau/multi_knowledge/0.json" in taken
    assert not any("out/tune" in path for path in taken)
    assert graph.outs["tune_tau@multi_knowledge-0"] == {
        "out/tau/multi_knowledge/0.json", "out/tune/tau/multi_knowledge/0.json",
    }  # fmt: skip
    assert not {key.split(".")[0] for key in graph.params["train@multi_knowledge-0"]} & {"tau", "tune"}


def test_no_stage_takes_the_masks_of_another_modality(graph: Graph) -> None:
    for modality, own in (("ct_slice", OF_SLICES), ("ct_volume", OF_VOLUMES), ("cxr", OF_XRAYS)):
        assert graph.after({f"segment@{modality}"}) <= own | POOLED


def test_every_section_reaches_a_stage(graph: Graph, values: dict) -> None:
    used = {key.split(".")[0] for keys in graph.params.values() for key in keys}
    assert used <= set(values)
    assert set(values) - used <= {"promote"}, "a section that no stage depends on changes nothing when edited"
