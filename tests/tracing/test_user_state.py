"""What a forward remembers is after a compile as it was before, and the user's model runs on."""

from __future__ import annotations

import copy
import functools
import itertools
import random
import sys
import threading
import time
import types
from collections import Counter, OrderedDict, defaultdict, deque
from contextvars import ContextVar
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import ModelError
from prunec.compiler.tracing.trace import trace
from prunec.compiler.tracing.user_state import is_users_module, undisturbed

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


def arange(n, device):
    return torch.arange(n, device=device, dtype=torch.float32)


def hidden_cache(f):
    cached = functools.lru_cache(maxsize=4)(f)

    @functools.wraps(f)
    def wrapper(*a, **k):
        return cached(*a, **k)

    wrapper.info = cached.cache_info
    return wrapper


def dict_cache(f):
    found = {}

    @functools.wraps(f)
    def wrapper(*key):
        if key not in found:
            found[key] = f(*key)
        return found[key]

    wrapper.info = lambda: dict(found)
    return wrapper


class Memo:
    """A decorator that is a class."""

    __slots__ = ("calls", "f", "found", "last")

    def __init__(self, f):
        self.f, self.found, self.calls = f, {}, 0

    def __call__(self, *key):
        self.calls += 1
        self.found[key] = self.last = self.found[key] if key in self.found else self.f(*key)
        return self.last


def counted(f):
    calls, last = 0, None

    def wrapper(*key):
        nonlocal calls, last
        calls += 1
        if last is None or last[0] != key:
            last = key, f(*key)
        return last[1]

    wrapper.info = lambda: (calls, last)
    return wrapper


hidden, dicted, memoised, recounted = hidden_cache(arange), dict_cache(arange), Memo(arange), counted(arange)
plainly = functools.lru_cache(arange)
TABLE: dict = {}
ROWS: list = []
LAST = None
STATE = types.ModuleType("acme_state")
sys.modules["acme_state"] = STATE
NEAR = threading.local()
WEAK: WeakKeyDictionary = WeakKeyDictionary()


class Net(nn.Module):
    """Two convolutions, between them a row of positions that `ask` remembers in its way."""

    shared = None
    table: dict = {}

    def __init__(self, ask):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)
        self.ask = ask
        self.memo = SimpleNamespace(found={}, calls=0, seen=set(), queue=deque(maxlen=3), counter=Counter())
        self.holder = Holder()
        self.found = None
        self.log = []
        self.numbers = np.zeros(3)
        self.ids = itertools.count(1)
        self.cached = functools.lru_cache(self.fresh)
        self.draw = random.Random(0)

    def fresh(self, n, device):
        return arange(n, device) + 0 * self.a.bias.mean()

    @functools.cache  # noqa: B019  (models have it)
    def method(self, n, device):
        return self.fresh(n, device)

    @staticmethod
    @functools.cache
    def static(n, device):
        return arange(n, device)

    @classmethod
    @functools.lru_cache
    def of_class(cls, n, device):
        return arange(n, device)

    @functools.cached_property
    def lazily(self):
        return arange(8, self.a.weight.device)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.b(y + self.ask(self, y.shape[1], y.device)[None, :, None])


class Holder:
    """An object that a module holds."""

    rows = None

    @functools.cached_property
    def lazily(self):
        return arange(8, torch.device("cpu"))

    @functools.lru_cache  # noqa: B019
    def method(self, n):
        return arange(n, torch.device("cpu"))

    def kept(self, n, device):
        if self.rows is None:
            self.rows = arange(n, device)
        return self.rows


def in_global_dict(s, n, device):
    if int(n) not in TABLE:
        TABLE[int(n)] = arange(n, device)
    return TABLE[int(n)]


def in_global_name(s, n, device):
    global LAST
    if LAST is None:
        LAST = arange(n, device)
    return LAST


def in_default(s, n, device, found={}):  # noqa: B006  (that is what is tested)
    return found.setdefault(n, arange(n, device))


def in_keyword_default(s, n, device, *, found=OrderedDict()):  # noqa: B006
    return found.setdefault(n, arange(n, device))


def in_function(s, n, device):
    if not hasattr(in_function, "found"):
        in_function.found = arange(n, device)
    return in_function.found


def in_class(s, n, device):
    if Net.shared is None:
        Net.shared = arange(n, device)
    return Net.shared


def in_type_of_self(s, n, device):
    cls = type(s)
    if not hasattr(cls, "rows"):
        cls.rows = arange(n, device)
    return cls.rows


def in_module(s, n, device):
    import acme_state  # noqa: PLC0415

    if not hasattr(acme_state, "rows"):
        acme_state.rows = arange(n, device)
    return acme_state.rows


def in_list(s, n, device):
    ROWS.append(arange(n, device))
    return ROWS[0]


def in_object(s, n, device):
    s.memo.calls += 1
    s.memo.seen.add(s.memo.calls)
    s.memo.counter["asked"] += 1
    s.memo.queue.append(arange(n, device))
    return s.memo.found.setdefault((n, device), s.memo.queue[0])


def in_attributes(s, n, device):
    s.log.append(n)
    if s.found is None:
        s.found = arange(n, device)
    return s.found


def in_numbers(s, n, device):
    s.numbers += 1
    return arange(n, device) + 0 * next(s.ids) + 0 * s.draw.random()


def in_thread(s, n, device):
    if not hasattr(NEAR, "rows"):
        NEAR.rows = arange(n, device)
    return NEAR.rows


def weakly(s, n, device):
    return WEAK.setdefault(s.holder, arange(n, device))


def nested(s, n, device):
    return deep["by device"][str(device)].setdefault(n, [arange(n, device)])[0]


deep: dict = {"by device": defaultdict(dict)}


def lazy_decorator(s, n, device):
    return functools.partial(hidden, n)(device=device)


class Registry:
    found: dict = {}

    @classmethod
    def get(cls, n, device):
        if n not in cls.found:
            cls.found = {**cls.found, n: arange(n, device)}
        return cls.found[n]


def under_no_grad():
    found = {}

    @torch.no_grad()
    def ask(s, n, device):
        return found.setdefault(n, arange(n, device))

    return ask


class Singletons(type):
    """A class of classes that keep their instances."""

    kept: dict = {}

    def __call__(cls, *key):
        if (cls, *key) not in Singletons.kept:
            Singletons.kept[(cls, *key)] = super().__call__(*key)
        return Singletons.kept[(cls, *key)]


class Table(metaclass=Singletons):
    def __init__(self, n):
        self.n, self.rows = n, None

    def get(self, device):
        if self.rows is None:
            self.rows = arange(self.n, device)
        return self.rows


def on_a_tensor(s, n, device):
    if not hasattr(LOOSE, "rows"):
        LOOSE.rows = arange(n, device)
    return LOOSE.rows


def in_context(s, n, device):
    if CONTEXT.get() is None:
        CONTEXT.set(arange(n, device))
    return CONTEXT.get()


LOOSE, PROXY = torch.zeros(1), types.MappingProxyType({"found": {}})
CONTEXT: ContextVar = ContextVar("rows", default=None)


ASKS = {
    "singleton": lambda s, n, device: Table(8).get(device),
    "dict behind a proxy": lambda s, n, device: PROXY["found"].setdefault(int(n), arange(n, device)),
    "attribute of a tensor": on_a_tensor,
    "context": in_context,
    "lru_cache in a closure": lambda s, n, device: hidden(n, device),
    "lru_cache of plain arguments": lambda s, n, device: hidden(8, torch.device("cpu")),
    "lru_cache by name": lambda s, n, device: plainly(8, device=device),
    "dict in a closure": lambda s, n, device: dicted(n, device),
    "object that decorates": lambda s, n, device: memoised(n, device),
    "nonlocal": lambda s, n, device: recounted(n, device),
    "cache on a method": lambda s, n, device: s.method(n, device),
    "static cache": lambda s, n, device: s.static(8, device),
    "class method's cache": lambda s, n, device: s.of_class(n, device),
    "cache of a bound method": lambda s, n, device: s.cached(n, device),
    "cached_property": lambda s, n, device: s.lazily,
    "cached_property of an object": lambda s, n, device: s.holder.lazily,
    "cache on an object's method": lambda s, n, device: s.holder.method(8),
    "object's class attribute": lambda s, n, device: s.holder.kept(n, device),
    "registry": lambda s, n, device: Registry.get(int(n), device),
    "by getattr": lambda s, n, device: getattr(s, "method")(n, device),  # noqa: B009
    "under no_grad": under_no_grad(),
    **{f.__name__: f for f in (in_global_dict, in_global_name, in_default, in_keyword_default, in_function, in_class)},
    **{f.__name__: f for f in (in_type_of_self, in_module, in_list, in_object, in_attributes, in_numbers, in_thread)},
    **{f.__name__: f for f in (weakly, nested, lazy_decorator)},
}


def reset():
    """Forget all that the models above remember in the process."""
    for cache in (hidden.__closure__[0].cell_contents, plainly, Net.method, Net.static, Holder.method):
        cache.cache_clear()
    vars(Net)["of_class"].__func__.cache_clear()
    for table in (TABLE, ROWS, memoised.found, dicted.info.__closure__[0].cell_contents, deep["by device"]):
        table.clear()
    for found in (in_default.__defaults__[0], in_keyword_default.__kwdefaults__["found"], WEAK, vars(NEAR)):
        found.clear()
    vars(in_function).clear()
    vars(STATE).pop("rows", None)
    if "rows" in vars(Net):
        del Net.rows
    for found in (Singletons.kept, PROXY["found"], LOOSE.__dict__):
        found.clear()
    CONTEXT.set(None)
    globals()["LAST"], Net.shared, Registry.found = None, None, {}


def remembered(model):
    """All of it, to be compared."""
    found = (in_default.__defaults__[0], in_keyword_default.__kwdefaults__["found"], dict(WEAK), vars(NEAR))
    caches = (hidden.info(), plainly.cache_info(), Net.method.cache_info(), Net.static.cache_info())
    sizes = [
        (cache.currsize, cache.misses) for cache in (*caches, Holder.method.cache_info(), Net.of_class.cache_info())
    ]
    own = {key: value for key, value in vars(model).items() if key not in ("numbers", "draw") and key[0] != "_"}
    process = (sizes, TABLE, ROWS, LAST, dicted.info(), memoised.found, memoised.calls, recounted.info(), deep, found)
    process = (*process, Singletons.kept, dict(PROXY), LOOSE.__dict__, CONTEXT.get())
    drawn = model.numbers.tolist(), model.draw.getstate(), repr(model.ids)
    of_classes = vars(Net).get("rows"), Net.shared, Registry.found
    return plain((own, vars(model.holder), vars(in_function), of_classes, process, vars(STATE).get("rows"), drawn))


def plain(value):
    """A copy in which tensors are lists, and fail where they have no data."""
    if isinstance(value, torch.Tensor):
        assert not value.is_meta
        return value.tolist()
    if isinstance(value, SimpleNamespace):
        return plain(vars(value))
    if isinstance(value, dict):
        return {repr(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return list(map(plain, value))
    return copy.copy(value) if isinstance(value, set | int | float) else repr(value)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ASKS)
def test_what_a_forward_remembers_is_as_it_was(name, warm):
    reset()
    model, x = Net(ASKS[name]).eval(), torch.rand(2, 3, 5)
    right = Net(lambda s, n, device: arange(n, device)).eval()(x)
    if warm:
        assert torch.equal(model(x), right)
    before = remembered(model)
    result = compile(model, PLAN, (x,))
    assert remembered(model) == before
    assert torch.equal(model(x), right)
    assert torch.equal(model(x[:1]), right[:1])
    assert result.module(x).shape == right.shape


def test_a_trace_that_is_refused_leaves_nothing_either():
    def refused(s, n, device):
        in_object(s, n, device)
        in_global_name(s, n, device)
        return dicted(n, device).item()

    reset()
    model, x = Net(refused).eval(), torch.rand(2, 3, 5)
    before = remembered(model)
    with pytest.raises(ModelError):
        trace(model, (x,))
    assert remembered(model) == before


@functools.lru_cache
def projection(n, *, scale=1.0):
    """A random table, which a network keeps in the cache and nowhere else."""
    return scale * torch.rand(n, n)


def test_what_a_cache_remembers_is_a_constant_of_the_model():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) @ projection(4) @ projection(4, scale=2.0)

    projection.cache_clear()
    model, x = Projected().eval(), torch.rand(2, 4)
    right = model(x)
    assert torch.equal(trace(model, (x,)).module(x), right)
    assert torch.equal(model(x), right)


def test_a_cache_that_cannot_be_replaced_forgets():
    cached = functools.lru_cache(arange)
    pair = (cached, arange)

    def ask(s, n, device):
        return pair[0](8, device)

    model, x = Net(ask).eval(), torch.rand(2, 3, 5)
    right = model(x)
    cached.cache_clear()
    trace(model, (x,))
    assert torch.equal(model(x), right)


def test_numbers_are_drawn_as_without_a_trace():
    def ask(s, n, device):
        return arange(n, device) * 0 + random.random() + np.random.random() + torch.zeros(1)

    model, x = Net(ask).eval(), torch.rand(2, 3, 5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with undisturbed(model):
        model(x)
        torch.manual_seed(1)
    found = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert found == states


def test_layers_that_no_module_holds():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.calls = nn.Linear(8, 8), 0
            self.register_buffer("rows", None, persistent=False)

        def forward(self, x):
            self.calls += 1
            if self.rows is None:
                self.rows = arange(8, x.device)
            self.last = self.fc(x) + self.rows
            return self.last

    apart = [Counting().eval()]
    model = Net(lambda s, n, device: apart[0](arange(n, device)))
    trace(model, (torch.rand(2, 3, 5),))
    assert apart[0].calls == 0
    assert apart[0].rows is None
    assert not hasattr(apart[0], "last")


def test_it_is_cheap():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(200)))
    start = time.process_time()
    with undisturbed(model):
        pass
    assert time.process_time() - start < 0.1, "5 ms on the machine that this was written on"


def test_a_class_of_c_may_have_no_module():
    assert not is_users_module(type.__dict__["__module__"])
    assert is_users_module("nets")
    assert not is_users_module("torch.nn")


class Queue:
    """A queue of another package, that its threads write into while a model is traced."""

    def __init__(self) -> None:
        self.items, self.seen, self.count = deque([1, 2]), {}, 0


Queue.__module__ = "acme.queues"


class Reaches(nn.Module):
    """A forward that could reach the queue, and leaves a tensor there."""

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.fc, self.queue, self.calls = nn.Linear(3, 2), queue, []

    def forward(self, x):
        self.queue.items.append("from a thread")
        self.queue.seen["last"] = x
        self.calls.append(1)
        return self.fc(x)


def test_what_other_packages_do_meanwhile_isn_t_undone():
    queue = Queue()
    model = Reaches(queue).eval()
    trace(model, (torch.rand(2, 3),))
    assert list(queue.items)[:3] == [1, 2, "from a thread"]
    assert queue.seen == {}  # a tensor without values, which the next forward would read
    assert model.calls == []
