"""Which references are in use; light, because commands that must answer at once ask it too."""

from typing import Any

import sqlalchemy as sa

from seechange_assets.provenance import Provenance
from sql.models import ReferenceRow

#: The recipe of references that were not made here.
EXTERNAL = Provenance("external_reference", "1", {}, ())


def in_current_set(recipes: Any) -> sa.ColumnElement[bool]:
    """SQL condition: made under the current recipe, or registered from outside under the name of its set."""
    recipe = recipes["reference"]  # its critical parameters: recipes read from the home have no others
    outside = sa.and_(ReferenceRow.provenance_id == EXTERNAL.id, ReferenceRow.name == recipe.parameters["name"])
    return sa.or_(ReferenceRow.provenance_id == recipe.id, outside)
