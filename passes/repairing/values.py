"""The values of attention heads, refit together with the projection that reads them.

    y [N, tokens, D] -- value -- V_h --                          A_h, a head's map, stays as it is
                                       A_h V_h -- project --     U_h = A_h [y 1]
    ... --------------- A_h -----------

    t ~ sum over heads of U_h M_h        M_h = W_h P_h, [D + 1, outputs], of no higher rank than the head has channels

A projection by itself can only read what the kept heads' values give; with them, it can read anything of the tokens
that these heads look at. Given the other heads, the best M_h is a reduced-rank regression (Izenman 1975): the least
squares M, and of it the part that lies in the first eigenvectors of M' (U'U + r I) M. Heads are refit in turn, each
step making the error less, from the projection that is best with the old values.

Which layer gives values, and which of its outputs are a head, is seen from what happens to numbers that are put in
their place: what the projection reads must be linear in them, each channel by itself, with one map for all of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx

from prunec.compiler.data import Batch
from prunec.compiler.ir.aliasing import mutates
from prunec.compiler.ir.inputs import map_tensors
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import IntArray, Program
from prunec.compiler.verify.interpreter import Interpreter, StepError, precision_of
from prunec.passes.repairing.calls import VIEWS, Call, call_of
from prunec.passes.repairing.layers import Found, Layer, Search, called
from prunec.passes.repairing.moments import RIDGES, Choice, Fit, Moments, choose, solve
from prunec.passes.repairing.refit import LeastSquares
from prunec.passes.repairing.rows import Form, chosen, of_inputs, positions
from prunec.passes.repairing.walk import Lane, Piece, feeds_of

WIDEST: Final = 3_072
"""Heads that read more than so many numbers together are left alone: their moments would take longest of all."""
TURNS: Final = 8
"""How often each head is refit for a ridge that is tried."""
LAST_TURNS: Final = 60
"""How often at most for the one that is taken: until nothing changes."""
_STILL: Final = 1e-6
"""A turn that changes less than this share is the last one."""
_CLOSE: Final = 1e-4
"""What rounding may change in single precision, as a share of the largest number."""


@dataclass(frozen=True)
class Values:
    """A layer that gives the values of attention heads, and the layer that reads what heads make of them."""

    node: fx.Node
    call: Call
    reader: Layer
    between: Sequence[fx.Node]
    """The nodes from the values to the reader, in their order."""
    heads: Sequence[IntArray]
    """For each head, which of the layer's outputs it has."""
    places: Sequence[IntArray]
    """For each head, where these lie in what the reader reads."""

    @property
    def name(self) -> str:
        """Both layers, as the report has them."""
        return f"{called(self.node)} with {called(self.reader.node)}"

    def features(self, program: Program) -> int:
        """How many numbers a head reads of a token: what the layer reads, and a one for its bias."""
        weight = self.call.weight.of(program.tensors[self.call.weight.name])
        return self.call.form.inputs(weight) + (self.call.bias is not None)

    def through(self, run: Interpreter, env: Mapping[fx.Node, Any], value: Tensor) -> dict[fx.Node, Any]:
        """What the reader reads, and the other summand of its target, when the layer gives `value`; `env` holds what
        was computed before it."""
        return _through(run, self.between, env, self.node, value, _wanted(self.reader))


# -- which layers ------------------------------------------------------------------------------------------------------


def values_of(search: Search, found: Found, pieces: Iterable[Batch]) -> list[Values]:
    """The values that readers which have lost inputs read by attention, told by what some samples give; by the next
    ones where these can't tell. Raises `DataError` where the model can't take them."""
    program, order, layers = search.slim, found.order, found.layers
    place = {node: index for index, node in enumerate(order)}
    tried: dict[fx.Node, list[tuple[Call, Layer, list[fx.Node]]]] = {}
    for reader in layers:
        if reader.lost and reader.calls == 1 and reader.norm is None and _is_pointwise(reader.form, reader, program):
            for node in _candidates(reader, program):
                between = _between(node, reader, order[place[node] + 1 : place[reader.node]], program)
                call = call_of(node, program)
                if between and call is not None and search.is_alone(call) and _is_pointwise(call.form, call, program):
                    tried.setdefault(node, []).append((call, reader, between))
    run, pairs = Interpreter(program, precision_of(program)), list[Values]()
    for piece in pieces if tried else ():
        env, left = dict[fx.Node, Any](), dict[fx.Node, list[tuple[Call, Layer, list[fx.Node]]]]()
        last = max(place[node] for node in tried)
        given = (map_tensors(lambda x: run.cast(x.clone()), feed) for feed in feeds_of(program, piece.inputs))
        try:
            for node, value in run.resume(order, env, given):
                for call, reader, between in tried.get(node, ()):
                    told, pair = _values(run, env, value, Values(node, call, reader, between, (), ()))
                    pairs += [] if pair is None else [pair]
                    if not told:
                        left.setdefault(node, []).append((call, reader, between))
                if place[node] == last:
                    break
        except StepError as error:
            raise piece.refused(error) from error
        tried = left
        if not tried:
            break
    return pairs


def _is_pointwise(form: Form, layer: Layer | Call, program: Program) -> bool:
    """Whether a layer computes each position from the same position alone."""
    conv = form.conv
    if conv is None:
        return True
    ones = (*conv.kernel_size, *conv.stride, conv.groups)
    return not form.turned and set(ones) == {1} and not any(conv._reversed_padding_repeated_twice)


def _candidates(reader: Layer, program: Program) -> Iterator[fx.Node]:
    """The layers from which a reader's source comes without another layer between."""
    waiting, seen = [reader.source], {reader.source}
    while waiting:
        node = waiting.pop()
        if call_of(node, program) is not None:
            yield node
            continue
        for each in node.all_input_nodes:
            if each not in seen and each.op not in ("placeholder", "get_attr"):
                seen.add(each)
                waiting.append(each)


def _between(node: fx.Node, reader: Layer, nodes: Sequence[fx.Node], program: Program) -> list[fx.Node]:
    """Those of `nodes` that the reader needs; none where something else reads what the layer gives, too, or something
    is written in place."""
    moved = {node}
    for each in nodes:
        if not moved.isdisjoint(each.all_input_nodes):
            moved.add(each)
    if any(user not in moved and user is not reader.node for each in moved for user in each.users):
        return []
    needed = set(_wanted(reader))
    for each in reversed(nodes):
        if each in needed:
            needed.update(each.all_input_nodes)
    kept = [each for each in nodes if each in needed]
    if any(each.op in ("placeholder", "output") or mutates(each, program.state) for each in nodes):
        return []
    return kept if reader.source in moved else []


def _wanted(reader: Layer) -> set[fx.Node]:
    return {reader.source} if reader.other is None else {reader.source, reader.other}


def _through(
    run: Interpreter,
    nodes: Sequence[fx.Node],
    env: Mapping[fx.Node, Any],
    node: fx.Node,
    value: Tensor,
    wanted: set[fx.Node],
) -> dict[fx.Node, Any]:
    found = {each: env[each] for each in wanted if each in env}
    for each, result in run.resume(nodes, {**env, node: value}):
        if each in wanted:
            found[each] = result
    return found


def _values(run: Interpreter, env: Mapping[fx.Node, Any], given: Tensor, pair: Values) -> tuple[bool, Values | None]:
    """Whether the samples can tell, and the pair with its heads, if the layer gives values."""
    told, flat = True, _last(given, pair.call.form, gives=True)
    for outputs in _parts(run, env, flat, given, pair):
        heads = _heads(run, env, flat, given, outputs, pair)
        if heads is not None and heads[0]:
            return True, Values(pair.node, pair.call, pair.reader, pair.between, *heads)
        told = told and heads is None
    return told, None


def _parts(run: Interpreter, env: Mapping[fx.Node, Any], flat: Tensor, given: Tensor, pair: Values) -> list[IntArray]:
    """The outputs of a layer that go the same way: all of them, or those of each part that views take of them."""
    leaves = set(_leaves(pair.node))
    numbers = torch.arange(flat.shape[-1], dtype=flat.dtype, device=flat.device).expand(flat.shape)
    found: dict[tuple[int, ...], None] = {}
    if pair.node in leaves:
        return [np.arange(flat.shape[-1])]
    left = len(leaves)
    for node, value in run.resume(pair.between, {**env, pair.node: _put_back(numbers, given, pair.call.form)}):
        if node in leaves:
            left -= 1
            if isinstance(value, Tensor):
                found[tuple(torch.unique(value).long().tolist())] = None
        if not left:
            break
    return [np.array(each) for each in found]


def _leaves(node: fx.Node) -> Iterator[fx.Node]:
    """What views make of a value, where something else than views reads it."""
    views = [user for user in node.users if op_name(user) in VIEWS and user.args and user.args[0] is node]
    if len(views) < len(node.users):
        yield node
    for each in views:
        yield from _leaves(each)


def _heads(
    run: Interpreter, env: Mapping[fx.Node, Any], flat: Tensor, given: Tensor, outputs: IntArray, pair: Values
) -> tuple[Sequence[IntArray], Sequence[IntArray]] | None:
    """For each head, its outputs and where they lie in what the reader reads; None where these aren't values,
    no heads where nothing finite but zero arrives there, so that nobody can tell."""
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.randn(*flat.shape[:-1], 1, generator=rng).to(flat) for _ in range(2))
    size = len(outputs)
    scales = 1 + torch.randperm(size, generator=rng).to(flat) / size

    def read(numbers: Tensor) -> Tensor:
        """[rows, inputs of the reader], with these numbers in place of the outputs."""
        put = flat.clone()
        put[..., torch.from_numpy(outputs)] = numbers.expand(*flat.shape[:-1], size)
        value = pair.through(run, env, _put_back(put, given, pair.call.form))[pair.reader.source]
        return _last(value, pair.reader.form, gives=False).flatten(0, -2).double()

    none, first, second = read(torch.zeros_like(one)), read(one), read(other)
    both, scaled = read(one + other), read(one * scales)
    fine = torch.stack([x.isfinite().all(1) for x in (none, first, second, both, scaled)]).all(0)
    none, first, second, both, scaled = (x[fine] for x in (none, first, second, both, scaled))
    if first.shape[1] != size:
        return None
    if not any(x.any() for x in (none, first, second, both, scaled)):
        return [], []
    far = _CLOSE * float(first.abs().max())
    factors = (scaled * first).sum(0) / first.square().sum(0)
    wrong = (none, both - first - second, scaled - factors * first)
    if not all(float(x.abs().max()) <= far for x in wrong):
        return None
    order = torch.argsort(scales)
    match = order[torch.searchsorted(scales[order].double(), factors - 0.5 / size).clamp(max=size - 1)]
    if len(torch.unique(match)) != size:
        return None
    places: list[IntArray] = []
    left = torch.arange(size)
    while len(left):
        same = (first[:, left] - first[:, left[:1]]).abs().amax(0).cpu() <= far
        places.append(left[same].numpy())
        left = left[~same]
    return [outputs[match.cpu().numpy()[each]] for each in places], places


def _dims(form: Form, *, gives: bool) -> tuple[int, ...]:
    return form.channels if gives or form.conv is not None else form.reads


def _last(x: Tensor, form: Form, *, gives: bool) -> Tensor:
    """A value with the channels that a layer gives, or reads, in its last dimension."""
    dims = _dims(form, gives=gives)
    return x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))


def _put_back(flat: Tensor, like: Tensor, form: Form) -> Tensor:
    """The same the other way round, for what a layer gives."""
    dims = _dims(form, gives=True)
    parts = flat.reshape(*flat.shape[:-1], *(like.shape[dim] for dim in dims))
    return parts.movedim(tuple(range(-len(dims), 0)), dims).contiguous()


# -- the refit ---------------------------------------------------------------------------------------------------------


class RefitValues(LeastSquares):
    """Values and their projection, from moments of what all heads could read."""

    def __init__(self, values: Values, program: Program, known: Sequence[int], rows: int) -> None:
        super().__init__(values.reader, program, known, rows)
        self.its = values
        self.giver = values.call.form.laid(values.call.weight.of(program.tensors[values.call.weight.name]).detach())
        """[1, D, outputs]: the weight of the layer that gives the values."""
        self.features = values.features(program)

    def see(self, piece: Piece) -> None:
        """Add a piece's rows."""
        full = piece.dense.value(self.layer.target, again=True)
        count = positions(full, self.layer.batch, self.layer.form)
        at = chosen(piece.samples, count, self.each, self.key)
        lane, form = piece.slim, self.its.call.form
        given = lane.given(self.its.node)
        flat, read = _last(given, form, gives=True), _last(self._source(lane), form, gives=False)
        if self.its.call.bias is not None:
            read = torch.cat([read, torch.ones_like(read[..., :1])], -1)
        parts: list[list[Tensor]] = [[] for _ in self.its.heads]
        most = max(-(-read.shape[-1] // len(head)) for head in self.its.heads)
        for turn in range(most):
            put = flat.clone()
            for head in self.its.heads:
                some = read[..., turn * len(head) : (turn + 1) * len(head)]
                put[..., torch.from_numpy(head[: some.shape[-1]])] = some
            found = self.its.through(lane.interpreter, lane.env, _put_back(put, given, form))
            rows = of_inputs(self.layer.form, found[self.layer.source], full, self.layer.batch, at)[:, 0]
            for part, head, places in zip(parts, self.its.heads, self.its.places, strict=True):
                wide = max(0, min(len(head), read.shape[-1] - turn * len(head)))
                part.append(rows[:, torch.from_numpy(places[:wide])])
        u = torch.cat([each for part in parts for each in part], 1).unsqueeze(1)
        other = self.layer.other
        self.add(piece, u, self.wanted(full, None if other is None else found[other], at), at)

    def _source(self, lane: Lane) -> Tensor:
        assert self.its.call.source is not None, "it reads a value"
        value: Tensor = lane.env[self.its.call.source]
        return value

    def _nothing(self, rows: int) -> Moments:
        return Moments.none(1, self.features * len(self.its.heads), self.weight.shape[-1], self.device)

    def finish(self) -> Choice | None:
        """Write values and projection where both together are better than the best projection of the old values."""
        fitted, held = self.fitted, self.held
        if not (isinstance(fitted, Moments) and isinstance(held, Moments)):
            return None
        if not (fitted.count and held.count and fitted.is_finite and held.is_finite):
            return None
        spread, counts = self._spread(), self.counts.reshape(1, -1)
        old = Fit(self.weight.double().flatten(1, -2), self._bias().reshape(1, -1))
        intercept, precision = self.layer.bias is not None, torch.finfo(self.weight.dtype).eps
        projected, judged = fitted.through(spread), held.through(spread)
        alone = choose(projected, judged, old, counts, intercept=intercept, precision=precision)

        def projection(moments: Moments) -> Tensor:
            """[features of all heads, outputs]: with the old values, and the best projection of them."""
            if alone.ridge is None:
                return spread @ old.weight[0]
            made = solve(moments.through(spread), old, alone.ridge, intercept=intercept)
            return spread @ (old if made is None else made).weight[0]

        start, tried = projection(fitted), list[tuple[float, float]]()
        for ridge in (max(each, precision) for each in RIDGES):
            fit = self._fit(fitted, self._in_turn(fitted, start, ridge), old)
            error = float((held.error(fit) * counts).sum())
            if error < alone.after:
                tried.append((error, ridge))
        whole = fitted + held
        limit, start = whole.through(spread).limit(old, counts, precision), projection(whole)
        for error, ridge in sorted(tried):
            found = self._in_turn(whole, start, ridge, LAST_TURNS)
            fit = self._fit(whole, found, old)
            if bool(found.isfinite().all()) and float((whole.size(fit) * counts).sum()) <= limit:
                self._write_both(found, fit, old)
                return Choice(fit, ridge, alone.after, max(error, 0.0))
        return Choice(alone.fit, None, alone.after, alone.after)

    def _spread(self) -> Tensor:
        """[features of all heads, inputs of the reader]: the old values."""
        features, weight = self.features, self._values()
        found = weight.new_zeros(features * len(self.its.heads), self.weight[0, ..., 0].numel())
        for number, (head, places) in enumerate(zip(self.its.heads, self.its.places, strict=True)):
            found[number * features : (number + 1) * features, torch.from_numpy(places)] = weight[:, head]
        return found

    def _values(self) -> Tensor:
        """[features, outputs]: weight and bias of the layer that gives the values."""
        weight = self.giver.double().flatten(1, -2)[0].clone()
        bias = self.its.call.bias
        if bias is None:
            return weight
        return torch.cat([weight, bias.of(self.program.tensors[bias.name]).detach().double().reshape(1, -1)])

    def _fit(self, moments: Moments, found: Tensor, old: Fit) -> Fit:
        if self.layer.bias is None:
            return Fit(found[None], old.bias)
        return Fit(found[None], (moments.targets - moments.inputs @ found) / moments.count)

    def _in_turn(self, moments: Moments, start: Tensor, ridge: float, turns: int = TURNS) -> Tensor:
        """[features of all heads, outputs]: the heads' M, refit one after the other, pulled towards `start`."""
        n, features = moments.count, self.features
        a, b = moments.gram[0] / n, moments.cross[0] / n
        if self.layer.bias is None:
            b = b - (moments.inputs / n).T @ self._bias().reshape(1, -1)
        else:
            mean = moments.inputs / n
            a, b = a - mean.T @ mean, b - mean.T @ (moments.targets / n)
        pull = ridge * a.diagonal().mean()
        found, spans = start.clone(), [slice(i * features, (i + 1) * features) for i in range(len(self.its.heads))]
        eye = torch.eye(features, dtype=a.dtype, device=a.device)
        shifted = [a[span, span] + pull * eye for span in spans]
        factors = [torch.linalg.cholesky_ex(each) for each in shifted]
        for _ in range(turns):
            last = found.clone()
            for span, head, metric, (factor, info) in zip(spans, self.its.heads, shifted, factors, strict=True):
                if int(info):
                    continue  # rounding has made an eigenvalue negative: the head keeps what it has
                lacking = b[span] - a[span] @ found + a[span, span] @ found[span] - a[span, span] @ start[span]
                best = start[span] + torch.cholesky_solve(lacking, factor)
                _, vectors = torch.linalg.eigh(best.T @ metric @ best)
                first = vectors[:, -len(head) :]
                found[span] = best @ first @ first.T
            if float((found - last).norm()) <= _STILL * float(found.norm()):
                break
        return found

    def _write_both(self, found: Tensor, fit: Fit, old: Fit) -> None:
        """Factors of each head's M into its values and its part of the projection: turned so that values are as near to
        the old ones as they can be, and of the same size."""
        values, projection = self._values(), old.weight[0].clone()
        for number, (head, places) in enumerate(zip(self.its.heads, self.its.places, strict=True)):
            left, sizes, right = torch.linalg.svd(
                found[number * self.features : (number + 1) * self.features], full_matrices=False
            )
            rank = min(len(head), len(sizes))
            given, read = left[:, :rank] * sizes[:rank].sqrt(), sizes[:rank].sqrt().unsqueeze(1) * right[:rank]
            before = values[:, head[:rank]]
            one, _, two = torch.linalg.svd(given.T @ before)
            size = before.norm() / given.norm().clamp(min=1e-300)
            size = size if float(size) > 0 else torch.ones_like(size)
            values[:, head], projection[places] = 0.0, 0.0
            values[:, head[:rank]] = given @ (one @ two) * size
            projection[places[:rank]] = (one @ two).T @ read / size
        call = self.its.call
        self.giver.copy_(values[: self.giver.shape[1]].reshape(self.giver.shape))
        call.form.put(self.giver, call.weight.of(self.program.tensors[call.weight.name]).detach())
        if call.bias is not None:
            bias = call.bias.of(self.program.tensors[call.bias.name]).detach()
            bias.copy_(values[-1].reshape(bias.shape))
        self._write(slice(None), projection[None], torch.ones_like(fit.bias))
        if self.layer.bias is not None:
            self.shift((fit.bias - old.bias).reshape(-1))
