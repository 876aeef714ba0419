"""Services: whether they answer, how fast, and what they stand on."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from support.dashboards import kit
from support.dashboards.kit import HERE, RATE, figure, lines

_HELD = (
    'route!~"POST /v1/checkins|GET /v1/evaluations/next|GET /v1/tasks/{task}/rounds/current'
    '|GET /v1/rounds/{task}/{number}/wanted|GET /v1/events.*"'
)
_FAILURES = {"2xx": kit.GREEN, "4xx": kit.ORANGE, "5xx": kit.RED}


def services() -> Dashboard:
    found = kit.board("Services", "Latency, errors, object storage, database and memory of every service.", by_task=False)
    panels = (
        kit.row("Now"),
        figure(
            "Processes up",
            "That Prometheus can read, by role.",
            f'sum by (component) (up{{{HERE},component=~"server|aggregator|evaluator|device"}})',
            legend="{{component}}",
            steps=((None, kit.RED), (1, kit.GREEN)),
            width=8,
        ),
        figure(
            "Leading",
            "Servers that drive the rounds: exactly one should.",
            f"sum(fedlearn_server_leader{{{HERE}}})",
            steps=((None, kit.RED), (1, kit.GREEN), (2, kit.RED)),
        ),
        figure(
            "Versions",
            "Processes by the version that they run.",
            f"count by (version) (fedlearn_build_info{{{HERE}}})",
            legend="{{version}}",
        ),
        figure(
            "Failed requests",
            "Of the last hour's, those answered with 5xx.",
            f'sum(increase(fedlearn_http_request_seconds_count{{{HERE},status="5xx"}}[1h])) '
            f"/ sum(increase(fedlearn_http_request_seconds_count{{{HERE}}}[1h]))",
            unit=kit.PERCENT,
            decimals=2,
            steps=((None, kit.GREEN), (0.01, kit.YELLOW), (0.05, kit.RED)),
        ),
        figure(
            "Storage faults",
            "Attempts of the last hour without an answer, or denied.",
            f"sum(increase(fedlearn_storage_errors_total{{{HERE}}}[1h]))",
            decimals=0,
            steps=((None, kit.GREEN), (1, kit.YELLOW), (20, kit.RED)),
        ),
        kit.row("Requests"),
        lines(
            "Requests a second",
            "By role and class of the answer: 4xx are refusals, 5xx are failures.",
            (kit.rate("fedlearn_http_request_seconds_count", by="component, status"), "{{component}} {{status}}"),
            unit=kit.PER_SECOND,
            width=8,
        ),
        lines(
            "Latency",
            "95 % of requests are answered in; without those that are held until there is news.",
            (kit.quantile(0.95, "fedlearn_http_request_seconds", _HELD, by="component"), "{{component}}"),
            unit=kit.SECONDS,
            width=8,
        ),
        lines(
            "Slowest routes",
            "Mean seconds, of the five slowest; without those that are held until there is news.",
            (f"topk(5, {kit.mean('fedlearn_http_request_seconds', _HELD, by='component, route')})", "{{component}}: {{route}}"),
            unit=kit.SECONDS,
            width=8,
        ),
        kit.row("Updates"),
        lines(
            "Updates a second, by what became of them",
            "folded, or the code of the refusal; docs/errors.md explains the codes.",
            (kit.rate("fedlearn_updates_total", by="result"), "{{result}}"),
            unit=kit.PER_SECOND,
            stacked=True,
            colours={"folded": kit.GREEN},
        ),
        lines(
            "Received",
            "Updates that the aggregator reads from object storage.",
            (kit.rate("fedlearn_updates_received_bytes_total"), "bytes"),
            unit=kit.BYTES_PER_SECOND,
        ),
        kit.row("Object storage"),
        lines(
            "Latency",
            "95 % of calls are done in, all their repetitions included.",
            (kit.quantile(0.95, "fedlearn_storage_request_seconds", by="operation"), "{{operation}}"),
            unit=kit.SECONDS,
            width=8,
        ),
        lines(
            "Faults a second",
            "outage: an attempt without an answer, which is repeated; denied: the credential does not allow it. Transfers of "
            "devices count when they are given up.",
            (kit.rate("fedlearn_storage_errors_total", by="reason"), "{{reason}}"),
            (kit.rate("fedlearn_transfer_errors_total", by="direction"), "device, {{direction}}"),
            unit=kit.PER_SECOND,
            colours={"outage": kit.RED, "denied": kit.ORANGE},
            width=8,
        ),
        lines(
            "Read and written",
            "By server and aggregator.",
            (kit.rate("fedlearn_storage_read_bytes_total", by="component"), "{{component}} reads"),
            (kit.rate("fedlearn_storage_written_bytes_total", by="component"), "{{component}} writes"),
            unit=kit.BYTES_PER_SECOND,
            width=8,
        ),
        kit.row("Database"),
        lines(
            "Latency",
            "95 % of transactions are done in, the wait for a lock and the commit included.",
            (kit.quantile(0.95, "fedlearn_database_transaction_seconds", by="operation"), "{{operation}}"),
            unit=kit.SECONDS,
        ),
        lines(
            "Transactions and faults a second",
            "Faults: the database did not answer.",
            (kit.rate("fedlearn_database_transaction_seconds_count", by="operation"), "{{operation}}"),
            (kit.rate("fedlearn_database_errors_total", by="operation"), "{{operation}} faults"),
            unit=kit.PER_SECOND,
        ),
        kit.row("Processes"),
        lines(
            "Memory",
            "Resident memory of each process.",
            (f'process_resident_memory_bytes{{{HERE},component!=""}}', "{{pod}}"),
            unit=kit.BYTES,
            width=8,
        ),
        lines(
            "CPU",
            "Cores that each process keeps busy.",
            (f'rate(process_cpu_seconds_total{{{HERE},component!=""}}[{RATE}])', "{{pod}}"),
            width=8,
        ),
        lines(
            "Open files",
            "File descriptors of each process: one that only grows is a leak.",
            (f'process_open_fds{{{HERE},component!=""}}', "{{pod}}"),
            width=8,
        ),
    )
    return kit.fill(found, panels)
