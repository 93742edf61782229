"""Why a message is withheld: it repeats what was told, or what it was made of is flagged"""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("alerts_outbox", sa.Column("withheld_for", sa.String(length=16), nullable=True))
    op.execute("""
        UPDATE alerts_outbox o SET withheld_for = CASE WHEN EXISTS (
            SELECT 1 FROM alert_sets a WHERE a.bitflag <> 0
            AND a.partition = o.exposure AND a.ccd = o.ccd AND a.provenance_id = o.provenance_id
        ) THEN 'flagged' ELSE 'repeated' END
        WHERE is_withheld
    """)


def downgrade() -> None:
    op.drop_column("alerts_outbox", "withheld_for")
