"""What a plan counts, refuses and warns of, without training."""

import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clue_ray.batches.device import ResidentCorpus
from clue_ray.batches.sampler import BatchSampler, GlobalBatch
from clue_ray.errors import ClusterError, SpecError
from clue_ray.spec.compute import train_flops
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec, StudySpec
from clue_ray.storage.files import write_json
from clue_ray.study import costs
from clue_ray.study.checks import check_cluster, check_study
from clue_ray.study.costs import Rate, Workload, choose_timing, fixed_rate, time_on_a_node
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planner import plan_runs
from clue_ray.study.warnings import coarse_times, no_cut_in_time, untrained_pairs
from tests.study.planning import make_study, plan

WIDE = {"encoder.size": ["xxs", "xs", "s", "m"], "sequence_length": [1, 2, 4, 8]}


def test_a_budget_is_spent_by_every_size(corpus, tmp_path):
    planned = plan(
        corpus, tmp_path, {"budgets": [3e8, 3e9]}, isoflop={"tokens_per_param": 5, "sizes": 3}
    )
    assert len(planned.runs) == 6
    for run in planned.runs:
        step = train_flops(run.run.encoder, Workload(corpus).step(run.run).required)
        assert abs(run.train_flops - run.run.train.train_flops) <= step / 2
    params = {}
    for run in planned.runs:
        params.setdefault(run.run.train.train_flops, []).append(
            run.description.non_embedding_params
        )
    assert all(1.3 < b / a < 3 for sizes in params.values() for a, b in pairwise(sizes))
    assert min(params[3e9]) > min(params[3e8])


def test_an_unreachable_horizon_is_refused_with_the_arithmetic(corpus, tmp_path):
    with pytest.raises(SpecError, match=r"train\.users_seen 15 is less than one batch of 16 users"):
        check_study(make_study({"train.users_seen": [16, 15]}))
    (run,) = plan(corpus, tmp_path, {"sequence_length": [4]}).runs
    step = run.train_flops / run.steps
    plan(corpus, tmp_path, {"budgets": [1.01 * step], "encoder.size": ["xxs"]})
    with pytest.raises(
        SpecError, match=r"train_flops \S+ is less than one step of encoder xxs, width 8, at batch"
    ):
        plan(corpus, tmp_path, {"budgets": [0.99 * step], "encoder.size": ["xxs"]})


def test_a_broken_share_of_gpus_is_refused():
    for resources, words in (
        ({"gpus_per_worker": 1.5}, r"gpus_per_worker is 1\.5, and a worker uses one GPU"),
        ({"gpus_per_worker": 2}, r"gpus_per_worker is 2, and a worker uses one GPU"),
        ({"gpus_per_worker": 0.5, "workers": 2}, r"is 0\.5 with 2 workers, and NCCL needs a GPU"),
    ):
        with pytest.raises(SpecError, match=words):
            check_study(make_study({}, resources=resources))


@pytest.mark.parametrize(
    ("packing", "gpus", "cores", "feed", "expected"),
    [
        (2.0, 1, 2.0, "auto", "ray_data"),
        (0.5, 1, 2.0, "auto", "worker"),
        (2.0, 0, 2.0, "auto", "worker"),
        (2.0, 1, 1.0, "auto", "worker"),  # no core is free to pack
        (0.5, 1, 2.0, "ray_data", "ray_data"),
        (2.0, 1, 2.0, "worker", "worker"),
    ],
)
def test_ray_data_packs_where_a_gpu_would_wait(
    corpus, tmp_path, packing, gpus, cores, feed, expected
):
    resources = {"gpus_per_worker": gpus, "feed": feed}
    study = make_study({"sequence_length": [4]}, resources=resources)
    planned = plan_runs(
        study,
        corpus,
        StudyDirectory(tmp_path),
        [{"CPU": cores, "GPU": 4.0, "trial_slot": 8.0}],
        timed=lambda runs: {run.encoder.model_dump_json(): Rate(0, 1e-9, packing) for run in runs},
    )
    (run,) = planned.runs
    assert run.run.resources.feed == expected
    assert any("fed by Ray Data" in note for note in planned.notes) == (
        (feed, expected) == ("auto", "ray_data")
    )
    assert planned.concurrency == (1 if expected == "ray_data" or cores == 1 else 2)


def plan_on_gpus(corpus, folder, rate, cpus, more=(), **resources):
    """Plan a run of a study for a node with a GPU for each of four workers."""
    study = make_study({"sequence_length": [4]}, resources={"gpus_per_worker": 1, **resources})
    nodes = [{"CPU": cpus, "GPU": 4.0, "trial_slot": 8.0}, *more]
    planned = plan_runs(
        study,
        corpus,
        StudyDirectory(folder),
        nodes,
        timed=lambda runs: {run.encoder.model_dump_json(): rate for run in runs},
    )
    check_cluster(planned, study, nodes)
    return planned, planned.runs[0].run.resources.feed


@pytest.mark.parametrize(
    ("cpus", "more", "feed"),
    [
        (4.0, [], "worker"),  # four runs would hold all cores, and wait for ever for packers
        (7.0, [], "worker"),
        (8.0, [], "ray_data"),
        (4.0, [{"CPU": 4.0, "data_pool": 1.0}], "ray_data"),
        (8.0, [{"CPU": 3.0, "data_pool": 1.0}], "worker"),
    ],
)
def test_packers_leave_room_for_as_many_runs_as_asked_for(corpus, tmp_path, cpus, more, feed):
    planned, found = plan_on_gpus(corpus, tmp_path, Rate(0, 1e-9, 2.0), cpus, more, concurrency=4)
    assert (found, planned.concurrency) == (feed, 4)


def test_packers_that_do_not_fit_beside_the_runs_asked_for_are_refused(corpus, tmp_path):
    rate, asked = Rate(0, 1e-9), {"concurrency": 4, "feed": "ray_data"}
    with pytest.raises(ClusterError, match=r"needs 8 CPU .* but the cluster has 7"):
        plan_on_gpus(corpus, tmp_path, rate, 7.0, **asked)
    with pytest.raises(ClusterError, match=r"a core each where Ray Data packs .* hold 3; a worker"):
        plan_on_gpus(corpus, tmp_path, rate, 8.0, [{"CPU": 3.0, "data_pool": 1.0}], **asked)


def test_workers_share_packing_but_not_drawing(corpus, tmp_path):
    rate = Rate(0, 1e-9, packing=0.6, drawing=0.2)
    feeds = [plan_on_gpus(corpus, tmp_path, rate, 64.0, workers=n)[1] for n in (1, 2, 4)]
    assert feeds == ["worker", "worker", "ray_data"]


def test_drawing_is_timed_apart_from_the_share_of_a_worker(corpus, monkeypatch):
    draw, pack = BatchSampler.batch, GlobalBatch.pack
    monkeypatch.setattr(BatchSampler, "batch", lambda *a: time.sleep(0.1) or draw(*a))
    monkeypatch.setattr(
        GlobalBatch, "pack", lambda batch, rows: time.sleep(0.02 * len(rows)) or pack(batch, rows)
    )
    (run,) = expand(make_study({"sequence_length": [4]}))  # 16 users in two services
    _, seconds, packing, drawing = costs._time_step(run, corpus, EvaluationSpec(candidates=16))
    stepping = seconds / (1 + packing)
    assert drawing * stepping == pytest.approx(0.1 + 2 * 0.02, abs=0.1)
    assert (packing - drawing) * stepping == pytest.approx(30 * 0.02, abs=0.2)


def test_a_batch_that_is_packed_on_a_gpu_needs_no_ray_data(corpus, monkeypatch):
    freed = []

    class OnCard(costs.Trainer):
        def __init__(self, *args):
            assert freed  # what the run before left is gone
            super().__init__(*args)
            self.prepare.resident = ResidentCorpus(corpus, torch.device("cpu"))

    monkeypatch.setattr(costs, "Trainer", OnCard)
    monkeypatch.setattr(costs, "free_device", lambda: freed.append(True))
    (run,) = expand(make_study({"sequence_length": [4]}))
    flops, seconds, *shares = costs._time_step(run, corpus, EvaluationSpec(candidates=16))
    assert flops > 0
    assert seconds > 0
    assert shares == [0, 0]


def test_cost_is_that_of_what_is_pending(corpus, tmp_path):
    planned = plan(corpus, tmp_path, WIDE, resources={"cpus_per_worker": 1})
    seconds = [r.expected_seconds for r in planned.runs]
    assert planned.core_hours == pytest.approx(sum(seconds) / 3600)
    assert planned.gpu_hours == 0
    assert max(seconds) <= 60 * planned.expected_minutes
    assert sum(seconds) <= 2 * 60 * planned.expected_minutes
    assert [r.expected_seconds for r in planned.pending] == sorted(seconds, reverse=True)
    params = [r.description.total_params for r in planned.runs]
    # Two states of each run and the encoder; a third state of those that train at once.
    training = sum(sorted(params)[-planned.concurrency :])
    assert planned.disk_bytes == (2 * 12 + 4) * sum(params) + 12 * training


def test_what_is_finished_is_neither_timed_nor_placed_again(corpus, tmp_path):
    first = plan(corpus, tmp_path, {"sequence_length": [1, 2], "resources.workers": [2]})
    write_json(tmp_path / "plan.json", first.to_dict())
    leave(tmp_path, first.runs[:1], "done")
    asked = []

    def timed(runs):
        asked.extend(run.sequence_length for run in runs)
        return fixed_rate(runs, 1e3)

    again = plan_runs(
        make_study({"sequence_length": [1, 2]}),
        corpus,
        StudyDirectory(tmp_path),
        [{"CPU": 1.0}],
        timed=timed,
    )
    assert asked == [2]
    assert [r.finished for r in again.runs] == [True, False]
    assert again.runs[0].expected_seconds == first.runs[0].expected_seconds
    assert again.runs[1].expected_seconds > 1e3 * first.runs[1].expected_seconds


def test_runs_at_a_time_are_as_many_as_asked_for(corpus, tmp_path):
    for workers, attribute in ((1, "concurrency"), (2, "multi_worker_runs")):
        for asked, found in (("auto", 8 // workers), (3, 3)):
            study = make_study({"resources.workers": [workers]}, resources={"concurrency": asked})
            node = {"CPU": 8.0, "trial_slot": 8.0}
            planned = plan_runs(
                study,
                corpus,
                StudyDirectory(tmp_path),
                [node],
                timed=lambda runs: fixed_rate(runs, 1e9),
            )
            assert getattr(planned, attribute) == found
    with pytest.raises(
        SpecError, match=r"resources\.concurrency is 0, but the input should be greater than 0"
    ):
        make_study({"sequence_length": [2]}, resources={"concurrency": 0})
    without = plan(corpus, tmp_path, {"sequence_length": [2]}, resources={"gpus_per_worker": 1})
    assert any("no node here has the 1 CPU and 1 GPU" in warning for warning in without.warnings)


def leave(folder, planned, status):
    for run in planned:
        StudyDirectory(folder).write_run(
            run.run, run.description.to_record(status, error="why"), []
        )


def test_a_changed_study_says_what_stays_valid(corpus, tmp_path):
    first = plan(corpus, tmp_path, {"sequence_length": [1, 2, 3, 4, 5]}).runs
    leave(tmp_path, first[:2], "done")
    leave(tmp_path, first[2:3], "failed")
    leave(tmp_path, first[3:4], "diverged")
    changed = plan(corpus, tmp_path, [{"sequence_length": [2, 3, 4]}, {"sequence_length": [4, 6]}])
    assert [r.finished for r in changed.runs] == [True, True, True, False]
    assert [r.run.sequence_length for r in changed.pending] == [6]
    said = " ".join(changed.notes)
    for words in (
        "another grid's and train once: 1.",
        "still valid: 1 of 4 runs.",
        "would diverge again: 1.",
        "Failed before: 1, left as they are; clue-ray run --retry-failed",
        f"no longer in this study file: 1, kept in {tmp_path}",
    ):
        assert words in said
    again = plan(corpus, tmp_path, [{"sequence_length": [2, 3, 4, 6]}], retry_failed=True)
    assert [r.run.sequence_length for r in again.pending] == [6, 3]
    assert "trained again" in " ".join(again.notes)


@pytest.mark.parametrize(
    ("axes", "train", "words"),
    [
        (WIDE, {}, ""),
        (
            {**WIDE, "sequence_length": [2, 4, 8]},
            {},
            "the runs have 3 values of sequence length; a law along them needs at least 4",
        ),
        ({"sequence_length": [3, 4, 5, 6]}, {}, "compute spans 0.3 decades"),
        (  # the bag alone costs a fraction, but laws describe the whole encoder
            [{"sequence_length": [3, 4, 5, 6]}, {"encoder.transformer": [False]}],
            {},
            "compute spans 0.3 decades",
        ),
        (
            {"encoder.size, sequence_length": [["xxs", 1], ["xs", 2], ["s", 4], ["m", 8]]},
            {},
            "sequence length vary together (correlation of logarithms 1.00)",
        ),
        (
            {"budgets": [1e9], "encoder.size": ["xxs", "xs", "s", "m"]},
            {},
            "training tokens vary together (correlation of logarithms -",
        ),
        (
            WIDE,
            {"steps": 200},
            "16 of 16 runs pass over the users of a pair of services more than 4 times, up to",
        ),
        (
            [WIDE, {"train.users_seen": [320, 321]}],
            {},
            "2 of 18 runs train the same steps on the same users as",
        ),
    ],
)
def test_a_weak_design_is_a_warning_with_its_number(corpus, tmp_path, axes, train, words):
    found = [w for w in plan(corpus, tmp_path, axes, train).warnings if "pool" not in w]
    assert any(words in warning for warning in found) if words else not found


def test_epochs_are_counted_as_batches_are_drawn(corpus, tmp_path):
    from clue_ray.batches.sampler import BatchSampler

    planned = plan(corpus, tmp_path, {"sequence_length": [4]}, {"steps": 300})
    (warning,) = [w for w in planned.warnings if "pass over" in w]
    pools = BatchSampler(planned.runs[0].run, corpus).pools
    drawn = 300 * 16 / np.sum([len(pool) for pool in pools.values()])
    assert f"up to {drawn:.1f};" in warning


def test_a_small_pool_says_what_it_can_tell_apart(corpus, tmp_path):
    (warning,) = [w for w in plan(corpus, tmp_path, WIDE).warnings if "pool" in w]
    users = int(warning.split("pool holds ")[1].split()[0])
    assert 16 <= users <= len(corpus.test_users)
    assert f"{0.6 / users**0.5:.3f} nats" in warning


def test_pairs_with_fewer_users_than_a_batch_are_a_warning(corpus, tmp_path):
    shared = {(0, 1): 60, (0, 2): 15, (1, 2): 0}
    three = SimpleNamespace(
        pairs=lambda: list(shared),
        training_pool=lambda pair, users: np.arange(shared[pair]),
    )
    planned = plan(corpus, tmp_path, {"sequence_length": [4]}).runs  # batches of 16
    (said,) = untrained_pairs(planned, three)
    assert said.startswith(
        "up to 1 of 3 service pairs have fewer training users than a batch and are left out"
    )
    shared[0, 2] = 16
    assert untrained_pairs(planned, three) == []


@pytest.mark.parametrize(
    ("field", "needed"),
    [("same_service", "two events in any"), ("past_future", "two different times")],
)
def test_runs_without_batches_cut_in_time_are_a_warning(corpus, tmp_path, field, needed):
    planned = plan(corpus, tmp_path, {f"train.{field}": [0.0, 0.5]}).runs  # batches of 16
    most = [15]
    few = SimpleNamespace(
        services="abc", training_pool=lambda pair, users: np.arange(most[0] - max(0, pair[0]))
    )
    (said,) = no_cut_in_time(planned, few)
    assert f"at most 15 training users with {needed}" in said
    most[0] = 16
    assert no_cut_in_time(planned, few) == []


def test_times_of_whole_days_are_a_warning_where_encoders_read_hours(corpus, tmp_path):
    planned = plan(corpus, tmp_path, {"encoder.time": [False, True]}).runs
    times = np.arange(9.0) * 86_400 - 7_200
    days = SimpleNamespace(times=times, last_time=1.7e9)
    (said,) = coarse_times(planned, days)
    assert "all times of the log are at 22:00 UTC" in said
    assert coarse_times(planned[:1], days) == []
    days.times[3] += 1
    assert coarse_times(planned, days) == []


def test_encoders_that_read_times_of_a_log_without_any_are_a_warning(corpus, tmp_path):
    planned = plan(corpus, tmp_path, {"encoder.time": [False, True]}).runs
    ordered = SimpleNamespace(times=np.arange(9.0), last_time=8.0)
    (said,) = coarse_times(planned, ordered)
    assert "only tell an order (0 to 8)" in said
    assert coarse_times(planned[:1], ordered) == []


def test_a_study_on_gpus_trains_in_bf16_unless_it_says_otherwise():
    gpu, share = {"gpus_per_worker": 1}, {"gpus_per_worker": 0.25}
    for resources, train, expected in (
        ({}, {}, "fp32"),
        (gpu, {}, "bf16"),
        (share, {}, "bf16"),
        (gpu, {"precision": "fp32"}, "fp32"),
    ):
        study = StudySpec(
            name="p",
            corpus="c",
            base={"train": {"steps": 4, **train}},
            axes={"encoder.size": ["xs"]},
            resources=resources,
        )
        (run,) = expand(study)
        assert run.train.precision == expected
        assert StudySpec(**study.model_dump(exclude={"base": {"resources"}})) == study


def test_heads_too_wide_for_a_gpu_are_refused():
    shape = {"width": 1056, "item_layers": 1, "service_layers": 1, "heads": 4}
    study = {
        "name": "wide",
        "corpus": "c",
        "base": {"train": {"steps": 4}, "encoder": shape},
        "axes": {"train.seed": [0]},
    }
    check_study(StudySpec(**study))
    on_gpu = StudySpec(**study, resources={"gpus_per_worker": 1})
    with pytest.raises(SpecError, match=r"heads of 264, and attention .* at most 256; use 6 heads"):
        check_study(on_gpu)


def test_gpus_are_never_timed_in_this_process():
    one, resources = [{"CPU": 4.0, "GPU": 1.0}], ResourcesSpec(gpus_per_worker=1)
    corpus = SimpleNamespace(place="c")
    assert choose_timing(corpus, None, resources, one, None).func is time_on_a_node
    without = choose_timing(corpus, None, resources, [{"CPU": 4.0}], None)
    assert without.func is costs._calibrate_on_cpu
