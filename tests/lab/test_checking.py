from __future__ import annotations

from groundthink.diagnose.check import lines
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
