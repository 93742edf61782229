"""Declarative base and the columns every product row shares."""

import uuid
from datetime import datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

#: Namespace of every deterministic (uuid5) identifier of this project.
SEECHANGE_NAMESPACE = uuid.UUID("5ee0c8a9-6e1f-5d51-9e0a-7c5a11ed15a7")


def deterministic_id(*parts: object) -> uuid.UUID:
    """uuid5 of the parts: the same thing has the same id on every machine and rerun."""
    return uuid.uuid5(SEECHANGE_NAMESPACE, "\x1f".join(str(part) for part in parts))


class Base(DeclarativeBase):
    """Base of all tables of the survey database."""

    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar = {
        dict[str, Any]: JSONB,
        list[str]: JSONB,
        uuid.UUID: UUID(as_uuid=True),
        datetime: sa.DateTime(timezone=True),
        float: sa.Double,
    }


class CreatedMixin:
    """When the row was written (server time)."""

    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class ProductRow(CreatedMixin):
    """One product of one partition under one provenance; unique in the three.

    ``partition`` is the exposure key for products of an exposure, ``field.filter`` for
    references, the calibration run for masters. ``filepath`` is relative to the archive's
    root; ``sha256`` is that of the file, ``content_hash`` that of the arrays and values in it
    (equal under two provenances when nothing changed). ``inputs`` records what the data
    decided: the reference, masters or catalogue excerpt used. ``updated_at`` is when the
    content was written last; a rerun that changes nothing leaves it. ``materialized_at`` is when
    Dagster was told of the product last, made or recognised: the version it holds is the newest by it.
    ``own_bitflag`` is what was set on this product, ``upstream_bitflag`` what it inherits from all it is made of, and
    ``bitflag`` both: 0 for a good product (`sql.lineage` keeps them).
    """

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    partition: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    filepath: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    content_hash: Mapped[str] = mapped_column(sa.String(64))
    n_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    summary: Mapped[dict[str, Any]]
    inputs: Mapped[dict[str, Any]]
    bitflag: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    own_bitflag: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    upstream_bitflag: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    updated_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    materialized_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())

    @declared_attr
    @classmethod
    def provenance_id(cls) -> Mapped[str]:
        """The recipe that made the product."""
        return mapped_column(sa.ForeignKey("provenances.id"), index=True)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        return (sa.UniqueConstraint("partition", "ccd", "provenance_id"),)
