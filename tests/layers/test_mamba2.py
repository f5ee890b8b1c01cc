from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from groundthink.errors import UserError
from groundthink.layers.mamba2 import Mamba2

pytestmark = pytest.mark.tiny


def test_published_initial_values():
    torch.manual_seed(0)
    mixer = Mamba2(512, state_size=4, head_size=2)
    mixer.init_weights()
    step, rate = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.99e-3 < step.min() < 1.1e-3 and 0.09 < step.max() < 0.1001
    assert abs(step.log().mean() - step.log().median()) < 0.3  # log-uniform: no skew
    assert 1 <= rate.min() < 1.1 and 15.9 < rate.max() <= 16
    assert abs(rate.mean() - 8.5) < 0.6
    assert (mixer.D == 1).all() and (mixer.norm.weight == 1).all()
    assert mixer.conv1d.weight.abs().max() <= 0.5


def test_tokens_beyond_the_window_act_through_the_recurrence_alone():
    torch.manual_seed(0)
    mixer = Mamba2(16, state_size=8, head_size=8)
    mixer.init_weights()
    mixer.A_log.data.fill_(20.0)  # a decay so fast that no matrix outlives its token
    x = torch.randn(1, 10, 16)
    changed = x.clone()
    changed[:, 2] += 1
    same = (mixer(x)[0] == mixer(changed)[0]).all(-1)[0]
    assert same.tolist() == [t not in range(2, 6) for t in range(10)]


def test_widths_that_do_not_fit_name_the_nearest():
    with pytest.raises(UserError, match=r"100 .* mamba_head_size 64; .* that fits is 96"):
        Mamba2(100)
    with pytest.raises(UserError, match="that fits is 64"):
        Mamba2(60, head_size=64, expand=1)
    with pytest.raises(UserError, match="mamba_groups 3 does not divide the 4 heads"):
        Mamba2(128, groups=3)
