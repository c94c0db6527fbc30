"""`class_evidence` as a criterion: scores of the fact that the pass of this name gives, without looking at data.

level: filter       the largest balanced evidence of the unit for any class that stays: keep it where that is above t
level: cluster      units of one cluster of images (`visualise`) stay or go together: first those of clusters whose
                    labels are all of classes that go, with scores below 1; then the others, with scores of 1 to 2
level: balanced     each class that stays takes its best unit in turn
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.compiler.plan.options import Fraction01
from prunec.passes.criteria.base import Found, Setting
from prunec.passes.criteria.class_tables import balanced, by_cluster, missing
from prunec.passes.criteria.classes import ByClass, check_seen, found_of
from prunec.passes.criteria.cluster_labels import SHARE


class ByEvidence(ByClass):
    """The evidence for classes that the pass `class_evidence` has found."""

    name: ClassVar[str] = "class_evidence"

    level: Literal["filter", "cluster", "balanced"] = Field(
        default="filter",
        description="`filter`: a unit's largest evidence for any class that stays; `cluster`: its cluster's, of those "
        "that `visualise` finds; `balanced`: its place in an order in which each class takes its best unit in turn",
    )
    share: Fraction01 = Field(
        default=SHARE,
        description="`level: cluster`: a cluster serves the classes with at least this share of its strongest class's "
        "evidence",
    )

    def required(self) -> frozenset[str]:
        """The table, and for clusters what `visualise` finds."""
        return frozenset({"class_evidence"} | ({"image_clusters"} if self.level == "cluster" else set()))

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """One piece of evidence for each group. Raises `PassError` for a class that there isn't, `DataError` where
        the data lack one that is named; where none is, those that they have count."""
        tables: Mapping[str, FloatArray] = setting.program.facts["class_evidence"]
        clusters: Mapping[str, IntArray] = setting.program.facts.get("image_clusters", {})
        sizes = {group.name: group.size for group in setting.groups}
        for name, table in tables.items():
            if len(table) != sizes.get(name):
                continue
            wanted = self._wanted(setting, table.shape[1])
            if self.classes is not None or setting.context.kept is not None:
                check_seen(tables, table, wanted, setting)
            lacking = set(missing(table, wanted))  # of all classes, those count that the data have
            wanted = [each for each in wanted if each not in lacking]
            if self.level != "cluster":
                yield name, found_of(self.scored(table, wanted, self.level))
            elif name in clusters:
                rows = balanced(table) if self.balance else table
                yield name, found_of(by_cluster(rows, clusters[name], wanted, self.share))

    def _wanted(self, setting: Setting, known: int) -> Sequence[int]:
        """The columns of the classes that stay."""
        kept = setting.context.kept
        if self.classes is None:
            return range(known) if kept is None else kept.kept
        for index, each in enumerate(self.classes):
            if each >= known:
                message = f"there is no class {each}: the model knows {known}, from 0"
                raise PassError(message, keys=("criterion", self.name, "classes", index))
        return self.classes
