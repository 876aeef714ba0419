"""Training: what is learnt, how rounds go, and what they cost."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from support.dashboards import kit
from support.dashboards.kit import HERE, RATE, TASK, figure, lines


def training() -> Dashboard:
    found = kit.board("Training", "Accuracy and loss of each task, its rounds, and how fast they go.", by_task=True)
    panels = (
        kit.row("Now"),
        figure(
            "Accuracy",
            "Of the newest scored version, on the test set that no device holds.",
            f"fedlearn_task_test_accuracy_ratio{{{TASK}}}",
            unit=kit.PERCENT,
            decimals=2,
            legend="{{task}}",
            steps=((None, kit.BLUE),),
        ),
        figure(
            "Loss", "Of the same version, on the test set.", f"fedlearn_task_test_loss{{{TASK}}}", decimals=4, legend="{{task}}"
        ),
        figure(
            "Model version", "The version that was committed last.", f"fedlearn_task_model_version{{{TASK}}}", legend="{{task}}"
        ),
        figure("Round", "The number of the newest round.", f"fedlearn_task_round{{{TASK}}}", legend="{{task}}"),
        figure(
            "Since the last commit",
            "Of tasks that run. Red after three times the longest that a round may take: then an alert fires.",
            f"time() - fedlearn_task_commit_timestamp_seconds{{{TASK}}}",
            unit=kit.SECONDS,
            decimals=0,
            legend="{{task}}",
        ),
        figure(
            "Abandoned in a row",
            "Rounds of a running task since its last commit. From three on an alert fires.",
            f"fedlearn_task_abandoned_rounds{{{TASK}}}",
            legend="{{task}}",
            steps=((None, kit.GREEN), (1, kit.YELLOW), (3, kit.RED)),
        ),
        kit.row("Learning"),
        lines(
            "Accuracy",
            "On the test set, of each scored version; on the devices' hold-outs, of the version that each round began with.",
            (f"fedlearn_task_test_accuracy_ratio{{{TASK}}}", "{{task}}, test set"),
            (f"fedlearn_task_federated_accuracy_ratio{{{TASK}}}", "{{task}}, hold-outs"),
            unit=kit.PERCENT,
            least=None,
            most=1,
            steps=True,
        ),
        lines(
            "Loss",
            "On the test set and on the devices' hold-outs, as the accuracy.",
            (f"fedlearn_task_test_loss{{{TASK}}}", "{{task}}, test set"),
            (f"fedlearn_task_federated_loss{{{TASK}}}", "{{task}}, hold-outs"),
            steps=True,
        ),
        kit.row("Rounds"),
        lines(
            "Rounds an hour",
            "Of all tasks, by outcome.",
            (f"3600 * {kit.rate('fedlearn_rounds_ended_total', by='outcome')}", "{{outcome}}"),
            stacked=True,
            colours={"committed": kit.GREEN, "abandoned": kit.RED},
        ),
        lines(
            "Why rounds were abandoned",
            "Rounds in the last while, of all tasks. docs/errors.md explains the codes.",
            (
                f'sum by (reason) (increase(fedlearn_rounds_ended_total{{{HERE},outcome="abandoned"}}[{RATE}])) > 0',
                "{{reason}}",
            ),
            stacked=True,
            bars=True,
        ),
        lines(
            "Where a round's time goes",
            "Mean seconds in each phase: selection waits for devices, configuration opens the round at the aggregator, "
            "reporting is training and upload, aggregation builds and publishes the model.",
            (kit.mean("fedlearn_round_phase_seconds", by="phase"), "{{phase}}"),
            unit=kit.SECONDS,
            stacked=True,
        ),
        lines(
            "Devices and examples in a model",
            "Behind the updates of the last committed round; examples have the axis on the right.",
            (f"fedlearn_task_round_devices{{{TASK}}}", "{{task}}, devices"),
            (f"fedlearn_task_round_examples{{{TASK}}}", "{{task}}, examples"),
            steps=True,
            on_the_right="B",
        ),
        kit.row("Throughput"),
        lines(
            "Examples trained a second",
            "Over all devices, counted once an epoch.",
            (kit.rate("fedlearn_device_trained_examples_total"), "examples"),
            width=8,
        ),
        lines(
            "Models down, updates up",
            "By devices and evaluator, to and from object storage.",
            (kit.rate("fedlearn_transfer_bytes_total", by="direction"), "{{direction}}"),
            unit=kit.BYTES_PER_SECOND,
            width=8,
        ),
        lines(
            "An update at the aggregator",
            "Mean seconds to read one, to open and check it, and to add it to the sum; and from a round's close to its model.",
            (kit.mean("fedlearn_update_fetch_seconds"), "read"),
            (kit.mean("fedlearn_update_open_seconds"), "open"),
            (kit.mean("fedlearn_update_fold_seconds"), "fold"),
            (kit.mean("fedlearn_model_publish_seconds"), "publish"),
            unit=kit.SECONDS,
            width=8,
        ),
    )
    return kit.fill(found, panels)
