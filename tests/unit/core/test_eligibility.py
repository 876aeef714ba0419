import pytest

from fedlearn.core.eligibility import Conditions, Demands, shortfall

RUNTIME = "Keras 3.15.1 on TensorFlow 2.21.0"


@pytest.mark.parametrize(
    ("demands", "conditions", "lacks"),
    [
        pytest.param(Demands(), Conditions(idle=False, charging=False, unmetered=False), None, id="nothing is demanded"),
        pytest.param(Demands(idle=True), Conditions(idle=False), "idle", id="in use"),
        pytest.param(Demands(charging=True), Conditions(charging=False), "charging", id="on battery"),
        pytest.param(Demands(unmetered=True), Conditions(unmetered=False), "metered", id="metered"),
        pytest.param(Demands(idle=True, charging=True, unmetered=True), Conditions(), None, id="all three"),
        pytest.param(Demands(min_free_memory_bytes=100), Conditions(free_memory_bytes=99), "memory", id="short of memory"),
        pytest.param(Demands(min_free_memory_bytes=100), Conditions(free_memory_bytes=100), None, id="just enough memory"),
        pytest.param(Demands(min_free_memory_bytes=1), Conditions(), "memory", id="memory unknown"),
        pytest.param(Demands(min_examples=31), Conditions(), "examples", id="too few examples"),
        pytest.param(Demands(min_examples=30), Conditions(), None, id="just enough examples"),
        pytest.param(Demands(runtime="Keras 3."), Conditions(), None, id="the runtime"),
        pytest.param(Demands(runtime="keras 4."), Conditions(), "runtime", id="another runtime"),
    ],
)
def test_a_device_is_eligible_when_it_meets_each_demand(demands: Demands, conditions: Conditions, lacks: str | None) -> None:
    found = shortfall(demands, conditions, examples=30, runtime=RUNTIME)
    assert found is None if lacks is None else lacks in (found or "")
