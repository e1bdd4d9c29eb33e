"""Files of the moments service: strict JSON, whole or not at all, and the last good one stays until the next is there."""

import errno
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moments_service import durable
from moments_service.adapters.clusters import NamedClusters
from moments_service.adapters.local import LocalMoments
from moments_service.clusters import Codebook
from moments_service.clusters.versions import LOG_FILE, ClusterVersions
from moments_service.durable import DamagedFileError, append_line, write_json, write_tensors
from moments_service.ledger import Ledger, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.messages.groups import Transcript
from moments_service.messages.table import GroupTable
from tests.unit.test_ledger import header

pytestmark = pytest.mark.unit


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def trained(steps: int) -> LocalMoments:
    moments = LocalMoments(clusters=NamedClusters())
    for step in range(steps):
        moments.advantages(step, ["a question"], [[1.0, 0.0]])
        moments.commit(step)
    return moments


def test_a_save_that_fails_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(1).save(tmp_path / "moments")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("moments_service.adapters.local.write_json", full)
        with pytest.raises(OSError, match="no space"):
            trained(2).save(tmp_path / "moments")
    assert LocalMoments.load(tmp_path / "moments").last_step == 0


def test_a_kill_between_two_renames_leaves_the_last_good_one(tmp_path: Path) -> None:
    trained(1).save(tmp_path / "moments")
    (tmp_path / "moments").rename(tmp_path / "moments.replaced")
    assert LocalMoments.load(tmp_path / "moments").last_step == 0


def test_one_changed_bit_of_saved_moments_is_refused(tmp_path: Path) -> None:
    trained(1).save(tmp_path / "moments")
    path = tmp_path / "moments" / "moments.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"moments\.safetensors is damaged"):
        LocalMoments.load(tmp_path / "moments")


async def test_a_part_of_a_reward_that_is_no_number_is_left_out_of_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, incarnation=0)
    parts = ({"right": float("nan"), "form": 0.5}, None)
    group = replace(header(0), parts=parts)
    text = Transcript("1+1", ("2", "\ud800"))
    await ledger.append(GroupTable.of([group]), np.array([0]), [text])
    await ledger.close()
    with LedgerReader(tmp_path) as reader:
        ((completions,),) = reader.query("SELECT completions FROM transcripts")
        ((written,),) = reader.query("SELECT parts FROM reward_parts")
        assert reader.reward_parts([(0, group.sequence, group.group_id)]).popitem()[1] == ({"form": 0.5}, None)
    assert strict(completions) == ["2", "\ud800"] and strict(written) == [{"form": 0.5}, None]


async def test_parts_are_kept_of_groups_without_texts_and_read_where_older_versions_kept_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, incarnation=0)
    groups = [replace(header(i), parts=({"form": float(i)},) * len(header(i).rewards)) for i in range(2)]
    await ledger.append(GroupTable.of([*groups, header(2)]), np.array([0, 0, 0]), [None, Transcript("?", ("a",)), None])
    await ledger.close()
    own = [(0, group.sequence, group.group_id) for group in (*groups, header(2))]
    with LedgerReader(tmp_path) as reader:
        assert [reader.reward_parts(own).get(key) for key in own] == [groups[0].parts, groups[1].parts, None]
    (path,) = part_paths(tmp_path)
    with sqlite3.connect(path) as old:
        old.execute("DROP TABLE reward_parts")
        old.execute("UPDATE transcripts SET reward_parts = '[{\"form\": 7.0}]'")
    old.close()
    with LedgerReader(tmp_path) as reader:
        assert [reader.reward_parts(own).get(key) for key in own] == [None, ({"form": 7.0},), None]


def test_no_number_that_json_does_not_have_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"good": 1.0})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "file.json", {"bad": value})
    assert strict((tmp_path / "file.json").read_text()) == {"good": 1.0}


def test_half_a_line_of_a_log_never_took_effect(tmp_path: Path) -> None:
    log = tmp_path / LOG_FILE
    versions = ClusterVersions(tmp_path, 0)
    versions.record(Codebook(np.eye(2, dtype=np.float32)), after_step=-1)
    with log.open("a") as file:
        file.write('{"incarnation": 0, "aft')
    versions.record(Codebook(np.eye(3, dtype=np.float32)), after_step=4)
    assert [record.after_step for record in versions.all_records()] == [-1, 4]
    assert [strict(line)["after_step"] for line in log.read_text().splitlines()] == [-1, 4]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".safetensors", ".safetensors"]


def test_a_log_is_cut_only_where_its_end_is_not_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, b"first")
    append_line(log, b"second")
    assert log.read_text() == "first\nsecond\n"
    log.write_text("first\nha")
    append_line(log, b"second")
    assert log.read_text() == "first\nsecond\n"
    log.write_text("half")
    append_line(log, b"first")
    assert log.read_text() == "first\n"


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_of_itself(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    fill = f"""
import resource
from pathlib import Path
from moments_service.durable import append_line
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # a write past it is cut short, as on a full disk
for number in range(9):
    append_line(Path({str(log)!r}), str(number).encode() * 29)
"""
    done = subprocess.run([sys.executable, "-c", fill], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 28] only 10 of 30 bytes of a line fit" in done.stderr
    assert log.read_bytes() == b"".join(str(number).encode() * 29 + b"\n" for number in range(3))


def test_a_sector_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "saved"
    with durable.whole_directory(directory) as partial:
        (partial / "weights").write_bytes(bytes(100))
    durable.verify_directory(directory)

    def bad_sector(_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "_digest", bad_sector)
    with pytest.raises(DamagedFileError, match=r"saved/weights cannot be read: Input/output error"):
        durable.verify_directory(directory)


def test_tensors_keep_their_shapes(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = {"none": np.array(3), "turned": np.arange(6.0).reshape(2, 3).T}
    write_tensors(tmp_path / "file", arrays, {"about": "it"})
    found = load_file(tmp_path / "file")
    for name, array in arrays.items():
        assert found[name].shape == array.shape and np.array_equal(found[name], array)
