"""The evaluation's plots as PNG: the same figures give the same bytes (no date, no version in the files)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chestflow.data.phantom.layout import SETS as PHANTOMS
from chestflow.files import atomic_path, plain

INK, ACCENT, SOFT, OTHER = "#1c2733", "#0b6e77", "#8a96a3", "#c2571a"


@contextmanager
def canvas(path: Path, title: str, *, size: tuple[float, float] = (4.6, 4.2)) -> Iterator[Any]:
    """An axes to draw on, saved to ``path`` as PNG when the block ends. Uses no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _titled(evidence: dict[str, Any], what: str) -> str:
    phantom = " (phantom data)" if evidence["profile"] in ("phantom", "tiny") or _any_phantom(evidence) else ""
    return f"{what}: {evidence['name']}{phantom}"


def _any_phantom(evidence: dict[str, Any]) -> bool:
    return not set(PHANTOMS).isdisjoint(evidence["counts"]["sources"])


def _with_interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "undefined"
    if value["lo"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['lo']:.3f}, {value['hi']:.3f}]"


def draw(evidence: dict[str, Any], folder: Path) -> list[Path]:
    """ROC, precision-recall, reliability, decision curve, confusion, and IoU by ratio group where there are maps.

    Args:
        evidence: what becomes ``out/evaluate/<name>.json``.
        folder: gets the pictures.

    Returns:
        The files made; a curve that is undefined (one class only) is left out.
    """
    evidence = plain(evidence)
    curves, image = evidence["curves"], evidence["metrics"]["image"]
    made = []
    if curves["roc"]:
        made.append(folder / "roc.png")
        with canvas(made[-1], _titled(evidence, "ROC")) as axes:
            axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--")
            axes.plot(curves["roc"]["fpr"], curves["roc"]["tpr"], color=ACCENT, label=_with_interval(image["auroc"]))
            axes.set(xlabel="1 - specificity", ylabel="sensitivity (COVID-19)", xlim=(-0.01, 1), ylim=(0, 1.01))
            axes.legend(title="AUC", loc="lower right", frameon=False, fontsize=8)
        made.append(folder / "pr.png")
        with canvas(made[-1], _titled(evidence, "Precision-recall")) as axes:
            share = evidence["counts"]["image"][evidence["positive"]] / max(evidence["counts"]["images"], 1)
            axes.axhline(share, color=SOFT, lw=1, ls="--")
            pr = curves["pr"]
            axes.step(pr["recall"], pr["precision"], color=ACCENT, where="post", label=_with_interval(image["pr_auc"]))
            axes.set(xlabel="sensitivity (COVID-19)", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
            axes.legend(title="average precision", loc="lower left", frameon=False, fontsize=8)
    made.append(folder / "reliability.png")
    _reliability(evidence, made[-1])
    made.append(folder / "decision.png")
    _decision(evidence, made[-1])
    for key in ("raw", "tuned"):
        made.append(folder / f"confusion_{key}.png")
        _confusion(evidence, key, made[-1])
    if any(group["images"] for group in evidence["localisation"].get("by_ratio", [])):
        made.append(folder / "localisation.png")
        _localisation(evidence, made[-1])
    return made


def _reliability(evidence: dict[str, Any], path: Path) -> None:
    with canvas(path, _titled(evidence, "Reliability")) as axes:
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--")
        for key, colour, section in (("raw", OTHER, "metrics"), ("calibrated", ACCENT, "tuned")):
            points = evidence["curves"]["reliability"][key]
            x, y = [p["mean_p"] for p in points], [p["observed"] for p in points]
            spread = [[p["observed"] - p["lo"] for p in points], [p["hi"] - p["observed"] for p in points]]
            label = f"{key}: ECE {_with_interval(evidence[section]['image']['ece'])}"
            axes.errorbar(x, y, yerr=spread, color=colour, marker="o", ms=3, lw=1, elinewidth=0.6, label=label)
        axes.set(xlabel="mean p(COVID-19) in the bin", ylabel="share with COVID-19", xlim=(0, 1), ylim=(-0.02, 1.02))
        axes.legend(loc="upper left", frameon=False, fontsize=8)


def _decision(evidence: dict[str, Any], path: Path) -> None:
    curve = evidence["curves"]["decision"]
    with canvas(path, _titled(evidence, "Decision curve")) as axes:
        for key, colour in (("all", SOFT), ("none", INK), ("model", ACCENT)):
            values = [float("nan") if v is None else v for v in curve[key]]
            axes.plot(curve["threshold"], values, color=colour, lw=1.4 if key == "model" else 1, label=key)
        top = max([v for v in (*curve["model"], *curve["all"]) if v is not None], default=1.0)
        axes.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.1, max(top * 1.1, 0.05)))
        axes.legend(frameon=False, fontsize=8)


def _confusion(evidence: dict[str, Any], key: str, path: Path) -> None:
    table, classes = evidence["confusion"]["image"][key], evidence["classes"]
    with canvas(path, _titled(evidence, f"Confusion, {key}")) as axes:
        shares = [[cell / max(sum(row), 1) for cell in row] for row in table]
        axes.imshow(shares, cmap="GnBu", vmin=0, vmax=1)
        for i, row in enumerate(table):
            for j, cell in enumerate(row):
                colour = "white" if shares[i][j] > 0.6 else INK
                axes.text(j, i, f"{cell}\n{shares[i][j]:.0%}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(classes)), classes, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8, rotation=90, va="center")
        axes.set(xlabel="called", ylabel="true")


def _localisation(evidence: dict[str, Any], path: Path) -> None:
    groups = evidence["localisation"]["by_ratio"]
    with canvas(path, _titled(evidence, "Attention on lesions")) as axes:
        for shift, key, colour in ((-0.2, "best_iou", SOFT), (0.2, "iou", ACCENT)):
            heights = [g[key]["value"] or 0.0 for g in groups]
            label = "best that the map's resolution allows" if key == "best_iou" else "this model"
            axes.bar([i + shift for i in range(len(groups))], heights, 0.38, color=colour, label=label)
        axes.set_xticks(range(len(groups)), [f"{g['group']}\nn={g['images']}" for g in groups], fontsize=8)
        axes.set(xlabel="infection ratio", ylabel="mean IoU", ylim=(0, 1))
        axes.legend(frameon=False, fontsize=8)
