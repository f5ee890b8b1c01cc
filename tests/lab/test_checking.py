from __future__ import annotations

from groundthink.diagnose.check import lines
from groundthink.lab.checking import kept
from groundthink.records import Records
from groundthink.verdicts.statistics import Interval, exact
from groundthink.verdicts.verdict import judge


def test_the_gravest_finding_of_a_quantity_speaks_for_it():
    good = judge("G4", "gradient R/M", Interval(1.0, 0.9, 1.1, 20))
    bad = judge("G3.5", "effective rank", exact(0.001), where="blocks.1.rwkv6")
    fine = judge("G3.5", "effective rank", exact(0.5), where="blocks.0.rwkv6")
    titles = {"G4": "balance", "G3.5": "states"}
    text = [str(line) for line in lines([good, fine, bad], titles)]
    assert [line.split()[0] for line in text] == ["G4", "PASS", "G3.5", "FAIL", "blocks.1.rwkv6;"]
    assert "1 [0.9, 1.1]" in text[1] and "0.3..3" in text[1]
    assert "1 FAIL, 1 PASS" in text[4]
    assert all(len(line) <= 80 for line in text)


def test_findings_of_other_gates_stay_while_the_step_is_the_same(tmp_path):
    path = tmp_path / "gates.jsonl"
    for step, id in ((5, "G1"), (9, "G1"), (9, "S1")):
        Records(path, {"step": step}).append("gate", id=id, name="x")
    assert [record["id"] for record in kept(path, {"G1"}, 9) if record["kind"] == "gate"] == ["S1"]
    assert [record["id"] for record in kept(path, (), 9) if "id" in record] == ["G1", "S1"]
    assert not list(kept(path, (), 10))
    assert not list(kept(tmp_path / "none.jsonl", (), 9))
