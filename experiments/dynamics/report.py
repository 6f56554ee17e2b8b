"""Tables and figure of the dynamics study."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.frame import LanguageStudy
from experiments.tables import markdown, unique, where
from inrun.plain_text import in_figure

PHASES = ("early", "middle", "late")


def report(out: Outputs, settings: LanguageStudy) -> None:
    """The ledger's text, and the figure of the first seed."""
    curves, phases, ledger = (out.rows(name) for name in ("dynamics", "phases", "ledger"))
    out.text("ledger", summary(settings, phases, ledger))
    out.figure("dynamics", plot_shares(where(curves, seed=curves[0]["seed"])))


def summary(settings: LanguageStudy, phases: list[dict], ledger: list[dict]) -> str:
    """Markdown: each phase's ledger, then each domain's share and mean value; means over seeds."""
    lines = [
        "# Value dynamics",
        "",
        f"{settings.scale}: {settings.model['name']}-{settings.model['preset']}, "
        f"{settings.train.steps} steps of {settings.train.batch_size} chunks, "
        f"{len(unique(ledger, 'seed'))} seed(s). Values in nats of the target's loss; share: of "
        "the positive domains' total in that phase; per use: mean value of a chunk each time it "
        "is used.",
        "",
    ]
    for target in unique(ledger, "target"):
        mine = where(ledger, target=target)
        lines += [f"## Target {target}", ""]
        lines += [markdown([_ledger(where(mine, phase=phase), phase) for phase in PHASES]), ""]
        rows = where(phases, target=target)
        table = [_domain(where(rows, group=group), group) for group in unique(phases, "group")]
        lines += [markdown(sorted(table, key=lambda row: row["domain"])), ""]
    return "\n".join(lines)


def _domain(rows: list[dict], domain: str) -> dict[str, str]:
    """Shares by phase; mean values per use and per unit of drop, phase after phase."""
    row: dict[str, str] = {"domain": domain}
    per_use, per_drop = [], []
    for phase in PHASES:
        mine = where(rows, phase=phase)
        shares = [r["share"] for r in mine if r["share"] is not None]
        drops = [r["per_drop"] for r in mine if r["per_drop"] is not None]
        row[f"{phase}: share"] = f"{sum(shares) / len(mine):.1%}" if shares else "negative"
        per_use.append(f"{np.mean([r['mean'] for r in mine]):+.1e}")
        per_drop.append(f"{np.mean(drops):+.3f}" if drops else "-")
        row |= {"per use": "; ".join(per_use), "per unit of drop": "; ".join(per_drop)}
    return row


def _ledger(rows: list[dict], phase: str) -> dict[str, Any]:
    drop = float(np.mean([row["drop"] for row in rows]))
    found: dict[str, Any] = {
        "phase": phase,
        "steps": f"{rows[0]['first_step']} to {rows[0]['last_step']}",
        "loss drop": drop,
    }
    for key in ("drift", "values", "residual"):
        if any(row[key] is None for row in rows):
            found[key] = "not measured"
        else:
            amount = float(np.mean([row[key] for row in rows]))
            found[key] = f"{amount:+.4f} ({amount / drop:.0%})" if drop > 0 else f"{amount:+.4f}"
    return found


def plot_shares(rows: list[dict]) -> Figure:
    """Upper row: shares of the positive domains (the paper's figure 3). Middle: mean value for each
    use (figure 11). Lower: value for each unit of loss drop.
    """
    targets = unique(rows, "target")
    figure = Figure(figsize=(5.2 * len(targets), 10), layout="constrained")
    axes = figure.subplots(3, len(targets), squeeze=False, sharex=True)
    groups = sorted({row["group"] for row in rows})
    for column, target in enumerate(targets):
        mine = [row for row in rows if row["target"] == target]
        lasts = sorted({row["last_step"] for row in mine})
        for key, axis in zip(("share", "mean", "per_drop"), axes[:, column]):
            table = {(row["group"], row["last_step"]): row[key] for row in mine}
            _lines(
                axis,
                key,
                {group: [table.get((group, last)) for last in lasts] for group in groups},
                lasts,
            )
        axes[0, column].set(title=f"target: {in_figure(target)}", ylim=(0, 1))
        axes[2, column].set(xlabel="step")
    for axis, label in zip(
        axes[:, 0],
        ("share of positive domains", "value per use, nats", "value per unit of loss drop"),
    ):
        axis.set_ylabel(label)
    axes[0, -1].legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False
    )
    return figure


def _lines(axis: Axes, key: str, heights: dict[str, list], lasts: list[int]) -> None:
    if key == "share":
        axis.stackplot(
            lasts,
            [[h or 0.0 for h in row] for row in heights.values()],
            labels=list(map(in_figure, heights)),
            colors=[f"C{k}" for k in range(10)],
        )
        return
    for number, (group, row) in enumerate(heights.items()):
        axis.plot(
            lasts,
            [np.nan if h is None else h for h in row],
            color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
            label=in_figure(group),
        )
    axis.axhline(0, color="black", linewidth=0.5)
    if key == "mean":
        axis.set_yscale("symlog", linthresh=1e-4)
