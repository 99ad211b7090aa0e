import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ms_diffusion.records import Records

PARTIAL = """
import logging, resource, sys
from pathlib import Path
from ms_diffusion.records import Records

logging.basicConfig(format="%(message)s", stream=sys.stdout)
path = Path(sys.argv[1])
records = Records(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
print([records.append(bytes([65 + i]) * 39 + b"\\n") for i in range(4)], path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(records.append(b"Z" * 39 + b"\\n"))
"""


def test_a_record_that_fits_in_part_leaves_nothing_behind(tmp_path):
    """A file that may have 100 bytes takes two records of 40, and 20 bytes of the third."""
    path = tmp_path / "records"
    root = Path(__file__).parents[1]
    output = subprocess.run(
        [sys.executable, "-c", PARTIAL, path], capture_output=True, text=True, check=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ).stdout.splitlines()
    assert output[0].startswith(f"cannot write {path}: ") and output[0].endswith("until it can be written")
    assert output[1:] == ["[True, True, False, False] 80", "True"], "one warning, and then it goes on"
    assert path.read_text() == "".join(f"{letter * 39}\n" for letter in "ABZ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_each_fault_is_warned_of_once(tmp_path, caplog):
    path, full = tmp_path / "records", Path("/dev/full")
    records = Records(path)
    for target in (full, full, None, full):
        path.unlink(missing_ok=True)
        if target is not None:
            path.symlink_to(target)
        with caplog.at_level(logging.WARNING):
            assert records.append(b"x\n") == (target is None)
    assert [record.message.split(": ")[1].split(";")[0] for record in caplog.records] == [os.strerror(28)] * 2


def test_a_folder_that_is_gone_is_a_warning(tmp_path, caplog):
    assert not Records(tmp_path / "gone" / "records").append(b"x\n")
    assert len(caplog.records) == 1
