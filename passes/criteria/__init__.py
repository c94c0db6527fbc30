"""How important each unit is: the criteria that `score` may name, a file for each family.

    norms.py          l1, l2, bn_scale, fpgm, random       the weights of one axis
    greedy.py         greedy_l1                            weights, without what earlier layers lose
    tiles.py          tile                                 weights, in blocks
    weights.py        taylor_weight                        weights and their gradients
    activations.py    activation_mean, activation_std, apoz, mutual_information
    taylor.py         taylor, taylor_signed, gate, fisher_gate
    curvature.py      obd, obd_fisher, obs
    classes.py        class_weights, class_maps
    oracle.py         oracle
    torch_pruning.py  torch_pruning                        its importance classes, by an adapter

    base.py, aggregates.py, spelling.py     the contract; scores out of evidence; how a plan names a criterion
    reads.py, watching.py, gates.py         where units are read, and one run over the data that looks there

Another package adds one by an entry point of the group `prunec.criteria`; see `base.py`.
"""

from __future__ import annotations
