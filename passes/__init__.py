"""The passes that a plan can name, one file each; their helpers stand in folders.

criteria/       how important units are, for `score`
selection/      which units go, for `select`
calibration/    the data that passes look at, and the loss without some units
studies/        the commands `prunec sensitivity` and `prunec rank`
"""

from __future__ import annotations
