"""What the dashboards' panels have in common: their source, their looks, their place."""

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
HERE = 'namespace=~"$namespace"'
TASK = f'{HERE},task=~"$task"'
RATE = "$__rate_interval"
PERCENT, SECONDS, BYTES, BYTES_PER_SECOND, PER_SECOND = "percentunit", "s", "bytes", "Bps", "ops"

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"
Query = tuple[str, str]
"""An expression and its legend."""


def query(expression: str, legend: str, *, letter: str = "A", instant: bool = False) -> prometheus.Dataquery:
    built = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend).datasource(SOURCE)
    return built.instant() if instant else built.range()


def figure(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = "short",
    decimals: int | None = None,
    legend: str = "",
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    background: bool = False,
    width: int = 4,
) -> stat.Panel:
    """One figure as it is now, with its way there behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(query(expression, legend))
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_mode(looks.BigValueColorMode.BACKGROUND if background else looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.AREA)
        .text_mode(looks.BigValueTextMode.VALUE_AND_NAME if legend else looks.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("–")
        .height(4)
        .span(width)
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
    bars: bool = False,
    steps: bool = False,
    colours: dict[str, str] | None = None,
    on_the_right: str = "",
    width: int = 12,
    height: int = 8,
) -> timeseries.Panel:
    """Curves over time, with their last and highest values below. Those with letters `on_the_right` have an axis there."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .line_width(0 if bars else 2)
        .fill_opacity(80 if bars else 25 if stacked else 8)
        .draw_style(looks.GraphDrawStyle.BARS if bars else looks.GraphDrawStyle.LINE)
        .line_interpolation(looks.LineInterpolation.STEP_AFTER if steps else looks.LineInterpolation.LINEAR)
        .show_points(looks.VisibilityMode.NEVER)
        .span_nulls(True)
        .stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL if stacked else looks.StackingMode.NONE))
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
        .height(height)
        .span(width)
    )
    for letter, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(query(expression, legend, letter=letter))
    for name, colour in (colours or {}).items():
        fixed: Any = {"mode": "fixed", "fixedColor": colour}
        panel = panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    for letter in on_the_right:
        panel = panel.override_by_query(letter, [model.DynamicConfigValue(id_val="custom.axisPlacement", value="right")])
    panel = panel if least is None else panel.min(least)
    return panel if most is None else panel.max(most)


def bars(title: str, description: str, expression: str, legend: str, *, width: int = 12, height: int = 8) -> bargauge.Panel:
    """Sums over the chosen time, side by side."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(query(expression, legend, instant=True))
        .unit("short")
        .decimals(0)
        .min(0)
        .orientation(looks.VizOrientation.HORIZONTAL)
        .display_mode(looks.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(((None, BLUE),)))
        .height(height)
        .span(width)
    )


def board(name: str, description: str, *, by_task: bool) -> build.Dashboard:
    """An empty dashboard with its variables, and links to the others."""
    made = (
        build.Dashboard(f"fedlearn / {name}")
        .uid(f"fedlearn-{name.lower()}")
        .description(description)
        .tags(["fedlearn"])
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .link(
            build.DashboardLink("fedlearn")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["fedlearn"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(build.DatasourceVariable("datasource").id("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("namespace", "Namespace", "label_values(fedlearn_build_info, namespace)"))
    )
    if by_task:
        made = made.with_variable(_choice("task", "Task", f"label_values(fedlearn_task_model_version{{{HERE}}}, task)"))
    return made


def row(title: str) -> build.Row:
    return build.Row(title)


def quantile(share: float, histogram: str, labels: str = "", *, by: str = "") -> str:
    """A quantile of a histogram over the last while; `by` are labels that are kept apart."""
    selector = f"{HERE},{labels}" if labels else HERE
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({kept}) (rate({histogram}_bucket{{{selector}}}[{RATE}])))"


def mean(histogram: str, labels: str = "", *, by: str = "") -> str:
    """The mean of a histogram over the last while."""
    selector = f"{HERE},{labels}" if labels else HERE
    kept = f" by ({by}) " if by else ""
    rates = [f"sum{kept}(rate({histogram}_{part}{{{selector}}}[{RATE}]))" for part in ("sum", "count")]
    return " / ".join(rates)


def rate(counter: str, labels: str = "", *, by: str = "", window: str = RATE) -> str:
    """A counter's growth a second over the last while."""
    selector = f"{HERE},{labels}" if labels else HERE
    kept = f" by ({by}) " if by else ""
    return f"sum{kept}(rate({counter}{{{selector}}}[{window}]))"


def _choice(name: str, label: str, expression: str) -> build.QueryVariable:
    everything: Any = {"selected": True, "text": "All", "value": "$__all"}
    return (
        build.QueryVariable(name)
        .id(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": expression, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(model.VariableOption(**everything))
    )


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> build.ThresholdsConfig:
    made = [model.Threshold(value=value, color=colour) for value, colour in steps]
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)


def fill(dashboard: build.Dashboard, parts: Sequence[Any]) -> build.Dashboard:
    """Rows and panels in order; panels flow from left to right."""
    for number, part in enumerate(parts, 1):
        part.id(number)
        dashboard = dashboard.with_row(part) if isinstance(part, build.Row) else dashboard.with_panel(part)
    return dashboard
