"""Fleet: who is there, who falls out and why, and at which pace devices come."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from support.dashboards import kit
from support.dashboards.kit import HERE, RATE, figure, lines

_LOST = 'standing=~"dropped|refused"'
_DONE = 'standing=~"dropped|refused|reported"'
_STATES = {"waiting": kit.BLUE, "selected": kit.YELLOW, "working": kit.GREEN, "away": kit.GREY}
_PODS = {
    "ready": kit.GREEN,
    "running": kit.YELLOW,
    "pending": kit.ORANGE,
    "terminating": kit.PURPLE,
    "ended": kit.GREY,
    "unknown": kit.RED,
}


def fleet() -> Dashboard:
    found = kit.board("Fleet", "Devices by state, drop-outs, the shapes of their sessions, and their pace.", by_task=False)
    panels = (
        kit.row("Now"),
        figure("Devices", "Heard of in the last day.", f"sum(fedlearn_fleet_devices{{{HERE}}})"),
        figure(
            "Waiting", "Their check-in is held until there is work.", f'sum(fedlearn_fleet_devices{{{HERE},state="waiting"}})'
        ),
        figure(
            "Working",
            "Selected for a running round: they train or upload.",
            f'sum(fedlearn_fleet_devices{{{HERE},state=~"selected|working"}})',
            steps=((None, kit.GREEN),),
        ),
        figure(
            "Pods ready", "As the cluster sees them; 0 without a cluster.", f'sum(fedlearn_fleet_pods{{{HERE},state="ready"}})'
        ),
        figure(
            "Drop-out",
            "Of the devices that rounds waited for in the last hour, those that dropped out or were refused. Devices that were "
            "let go because others were faster do not count.",
            f"sum(increase(fedlearn_round_participants_total{{{HERE},{_LOST}}}[1h])) "
            f"/ sum(increase(fedlearn_round_participants_total{{{HERE},{_DONE}}}[1h]))",
            unit=kit.PERCENT,
            decimals=1,
            steps=((None, kit.GREEN), (0.1, kit.YELLOW), (0.3, kit.RED)),
        ),
        figure(
            "Sessions that went well",
            "Of all sessions of the last hour, those of the shape -v[]+^.",
            f'sum(increase(fedlearn_device_sessions_total{{{HERE},shape="-v[]+^"}}[1h])) '
            f"/ sum(increase(fedlearn_device_sessions_total{{{HERE}}}[1h]))",
            unit=kit.PERCENT,
            decimals=1,
            steps=((None, kit.RED), (0.5, kit.YELLOW), (0.7, kit.GREEN)),
        ),
        kit.row("States"),
        lines(
            "Devices by state",
            "waiting: its check-in is held; selected: it has work that it has not taken up; working: it trains or uploads; "
            "away: it was heard of in the last day.",
            (f"sum by (state) (fedlearn_fleet_devices{{{HERE}}})", "{{state}}"),
            stacked=True,
            colours=_STATES,
        ),
        lines(
            "Their pods by state",
            "As the cluster sees them; running: not ready yet, or not any more.",
            (f"sum by (state) (fedlearn_fleet_pods{{{HERE}}})", "{{state}}"),
            stacked=True,
            colours=_PODS,
        ),
        kit.row("Rounds"),
        lines(
            "Selected devices an hour, by how they ended",
            "reported: the update counts; released: let go, since others were faster or the time was up.",
            (f"3600 * {kit.rate('fedlearn_round_participants_total', by='standing')}", "{{standing}}"),
            stacked=True,
            colours={"reported": kit.GREEN, "released": kit.BLUE, "dropped": kit.ORANGE, "refused": kit.RED},
            width=8,
        ),
        lines(
            "Drop-outs by phase and reason",
            "Devices that told why, in the last while: selected, before they took the work up; accepted, while they trained or "
            "uploaded.",
            (
                f"sum by (standing, reason) (increase(fedlearn_round_dropouts_total{{{HERE}}}[{RATE}])) > 0",
                "{{standing}} {{reason}}",
            ),
            stacked=True,
            bars=True,
            width=8,
        ),
        kit.bars(
            "Session shapes",
            "In the chosen time. - checked in, v model fetched, [ training began, ] it ended, + upload began, ^ it was taken, "
            "# it was refused, ! something failed or there was no time left.",
            f"sum by (shape) (increase(fedlearn_device_sessions_total{{{HERE}}}[$__range]))",
            "{{shape}}",
            width=8,
        ),
        kit.row("Pace"),
        lines(
            "Check-ins a second",
            "Answered ones, by the class of the answer.",
            (kit.rate("fedlearn_http_request_seconds_count", 'route="POST /v1/checkins"', by="status"), "{{status}}"),
            unit=kit.PER_SECOND,
            colours={"2xx": kit.GREEN, "4xx": kit.ORANGE, "5xx": kit.RED},
            width=8,
        ),
        lines(
            "Rounds wait for devices",
            "Mean seconds of the selection phase.",
            (kit.mean("fedlearn_round_phase_seconds", 'phase="selection"'), "selection"),
            unit=kit.SECONDS,
            width=8,
        ),
        lines(
            "Training",
            "Seconds of local training, over all devices.",
            (kit.quantile(0.5, "fedlearn_device_training_seconds"), "half are done in"),
            (kit.quantile(0.95, "fedlearn_device_training_seconds"), "95 % are done in"),
            unit=kit.SECONDS,
            width=8,
        ),
        kit.row("Devices"),
        lines(
            "Memory",
            "Resident memory of the processes that host devices.",
            (f'max(process_resident_memory_bytes{{{HERE},component="device"}})', "largest"),
            (f'avg(process_resident_memory_bytes{{{HERE},component="device"}})', "mean"),
            unit=kit.BYTES,
            width=8,
        ),
        lines(
            "CPU",
            "Cores that the devices keep busy.",
            (f'sum(rate(process_cpu_seconds_total{{{HERE},component="device"}}[{RATE}]))', "cores"),
            width=8,
        ),
        lines(
            "Transfers",
            "Seconds to fetch a model (down) or to store an update (up), 95 % are faster.",
            (kit.quantile(0.95, "fedlearn_transfer_seconds", by="direction"), "{{direction}}"),
            unit=kit.SECONDS,
            width=8,
        ),
    )
    return kit.fill(found, panels)
