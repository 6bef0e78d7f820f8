"""The Python side of examples/beside_python.rs: T2M's tables as SQLAlchemy models, written and read beside Rust.

`write` stores a row of every table, `answer` reads what Rust made of it, checks what README.md says of times, and changes
some. It runs in a time zone that is not UTC. The models are as they were before the migrations: times are naive.
"""

import asyncio
import os
import sys
import time
import warnings
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, MetaData, Numeric, String, Table, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

warnings.filterwarnings("ignore", "datetime.datetime.utcnow", DeprecationWarning)
URL = os.environ["DATABASE_URL"]
# The same in examples/beside_python.rs.
THEN = datetime(2026, 1, 2, 3, 4, 5, 678901)
OURS = UUID("00000000-0000-4000-8000-0000000000aa")
JOB, WAITING, VIDEO = (UUID(f"00000000-0000-4000-8000-0000000000b{n}") for n in range(3))


class Base(DeclarativeBase):
    type_annotation_map = {dict: JSONB, list: JSONB}


class Row:
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    created_at: Mapped[datetime] = mapped_column(default=datetime.utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=datetime.utcnow)


class SoftDeleted(Row):
    is_deleted: Mapped[bool] = mapped_column(default=False)
    deleted_at: Mapped[datetime | None]


class User(SoftDeleted, Base):
    __tablename__ = "users"
    clerk_user_id: Mapped[str] = mapped_column(String(255), unique=True)
    username: Mapped[str | None] = mapped_column(String(255))
    first_name: Mapped[str | None] = mapped_column(String(255))
    last_name: Mapped[str | None] = mapped_column(String(255))
    image_url: Mapped[str | None]
    email_addresses: Mapped[list] = mapped_column(default=list)
    phone_numbers: Mapped[list] = mapped_column(default=list)
    primary_email: Mapped[str | None] = mapped_column(String(255))
    primary_phone: Mapped[str | None] = mapped_column(String(50))
    email_verified: Mapped[bool] = mapped_column(default=False)
    phone_verified: Mapped[bool] = mapped_column(default=False)
    two_factor_enabled: Mapped[bool] = mapped_column(default=False)
    role: Mapped[str] = mapped_column(String(50), default="user")
    status: Mapped[str] = mapped_column(String(50), default="active")
    last_sign_in_at: Mapped[datetime | None]
    last_active_at: Mapped[datetime | None]
    user_metadata: Mapped[dict] = mapped_column(default=dict)


class Job(SoftDeleted, Base):
    __tablename__ = "jobs"
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    job_type: Mapped[str] = mapped_column(String(50), default="video_generation")
    priority: Mapped[str] = mapped_column(String(20), default="normal")
    configuration: Mapped[dict]
    status: Mapped[str] = mapped_column(String(50), default="queued")
    progress_percentage: Mapped[Decimal] = mapped_column(Numeric(5, 2), default=0)
    current_stage: Mapped[str | None] = mapped_column(String(100))
    stages_completed: Mapped[list] = mapped_column(default=list)
    estimated_completion: Mapped[datetime | None]
    processing_time_seconds: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    error_info: Mapped[dict | None]
    metrics: Mapped[dict | None]
    result_url: Mapped[str | None] = mapped_column(String(500))
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    batch_id: Mapped[UUID | None]
    parent_job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))


class File(SoftDeleted, Base):
    __tablename__ = "file_metadata"
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    file_type: Mapped[str] = mapped_column(String(50))
    original_filename: Mapped[str] = mapped_column(String(255))
    stored_filename: Mapped[str] = mapped_column(String(255))
    s3_bucket: Mapped[str] = mapped_column(String(255))
    s3_key: Mapped[str] = mapped_column(String(500))
    s3_version_id: Mapped[str | None] = mapped_column(String(255))
    file_size: Mapped[int] = mapped_column(BigInteger)
    content_type: Mapped[str] = mapped_column(String(100))
    checksum: Mapped[str | None] = mapped_column(String(64))
    file_metadata: Mapped[dict] = mapped_column(default=dict)
    description: Mapped[str | None]
    tags: Mapped[list] = mapped_column(default=list)
    last_accessed_at: Mapped[datetime | None]


class Entry(Row, Base):
    __tablename__ = "job_queue"
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    priority: Mapped[str] = mapped_column(String(20), default="normal")
    queue_status: Mapped[str] = mapped_column(String(50), default="queued")
    worker_id: Mapped[str | None] = mapped_column(String(255))
    processing_node: Mapped[str | None] = mapped_column(String(255))
    queued_at: Mapped[datetime] = mapped_column(default=datetime.utcnow)
    processing_started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    retry_count: Mapped[int] = mapped_column(default=0)
    max_retries: Mapped[int] = mapped_column(default=3)
    next_retry_at: Mapped[datetime | None]
    queue_position: Mapped[int | None]


class MigrationLog(Base):
    __tablename__ = "migration_log"
    version: Mapped[str] = mapped_column(String(255), primary_key=True)
    description: Mapped[str | None]
    applied_at: Mapped[datetime] = mapped_column(default=datetime.utcnow)


# asyncpg reads the URL by itself: SQLAlchemy's own parser does not know a socket's path in the place of a host.
engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(URL))
Session = async_sessionmaker(engine, expire_on_commit=False)


def stored(file_type, name, **more):
    kind = "video/mp4" if file_type == "video" else "image/jpeg"
    names = {"original_filename": name, "stored_filename": name, "s3_bucket": "b", "s3_key": f"python/{name}"}
    return File(user_id=OURS, job_id=JOB, file_type=file_type, file_size=4_000_000_000, content_type=kind, **names, **more)


async def write():
    async with Session.begin() as session:
        session.add(User(id=OURS, clerk_user_id="python", username="Ada", primary_email="ada@example.org", role="admin",
                         email_addresses=[{"email": "ada@example.org"}], last_sign_in_at=THEN, user_metadata={"plan": "pro"}))
        await session.flush()
        session.add(Job(id=JOB, user_id=OURS, priority="urgent", status="processing", started_at=THEN,
                        configuration={"topic": "Bees", "scene_count": 2, "style": {"voice": "calm"}},
                        progress_percentage=Decimal("45.50"), current_stage="render", processing_time_seconds=Decimal("1.25"),
                        stages_completed=["script", {"stage": "images", "completed_at": THEN.isoformat()}],
                        error_info={"message": "once", "failed_at": THEN.isoformat(), "attempt": 1},
                        metrics={"render_seconds": 2.5, "gpu": "a"}))
        session.add(Job(id=WAITING, user_id=OURS, configuration={"topic": "Wasps"}))
        # A job of every kind, priority and state.
        for kind in ["batch_video_generation", "file_processing", "content_analysis"]:
            session.add(Job(user_id=OURS, job_type=kind, configuration={}, status="archived"))
        for priority in ["low", "high"]:
            session.add(Job(user_id=OURS, priority=priority, configuration={}, status="archived"))
        for status in ["created", "queued", "completed", "failed", "cancelled"]:
            session.add(Job(user_id=OURS, configuration={}, status=status))
        await session.flush()
        session.add(Entry(job_id=JOB, priority="urgent", queue_status="processing", worker_id="python-1", retry_count=1,
                          processing_started_at=datetime.utcnow()))
        session.add(Entry(job_id=WAITING))
        details = {"scene_number": 1, "duration_seconds": 7.5, "view_count": 3, "last_accessed": THEN.isoformat(), "mood": "light"}
        session.add(stored("video", "scene.mp4", id=VIDEO, checksum="5e" * 32, tags=["bees"], file_metadata=details))
        session.add(stored("thumbnail", "still.jpg", file_metadata={"video_id": str(VIDEO), "timestamp_seconds": 2.5}))
        session.add(MigrationLog(version="002", description="written beside Rust"))


async def answer():
    async with Session.begin() as session:
        user = (await session.execute(select(User).where(User.clerk_user_id == "rust"))).scalar_one()
        assert (user.role, user.status, user.email_addresses, user.is_deleted) == ("user", "active", [], False), vars(user)
        near_now(user.created_at)
        jobs = {job.configuration["topic"]: job for job in (await session.execute(select(Job).where(Job.user_id == user.id))).scalars()}
        made, broken = jobs["made by Rust"], jobs["broken by Rust"]
        assert (made.status, made.priority, made.job_type) == ("completed", "high", "video_generation"), vars(made)
        assert (made.progress_percentage, made.processing_time_seconds) == (Decimal(100), Decimal("1.50")), vars(made)
        assert made.stages_completed == ["script"] and made.metrics["scenes_rendered"] == 1, vars(made)
        assert timedelta(0) <= made.completed_at - made.started_at < timedelta(minutes=1)
        assert (broken.status, broken.error_info["message"]) == ("failed", "no voice"), vars(broken)
        near_now(datetime.fromisoformat(broken.error_info["failed_at"]))
        statuses = dict((await session.execute(select(Entry.job_id, Entry.queue_status))).tuples().all())
        assert [statuses[job.id] for job in (made, broken)] == ["completed", "failed"], statuses
        files = {file.file_type: file for file in (await session.execute(select(File).where(File.user_id == user.id))).scalars()}
        assert files["video"].file_metadata == {"scene_number": 1, "duration_seconds": 7.5}, files["video"].file_metadata
        assert files["thumbnail"].file_metadata["video_id"] == str(files["video"].id), files["thumbnail"].file_metadata

        # What Rust made of our own: a view counted, the job that waited claimed and given back.
        video = await session.get_one(File, VIDEO)
        assert (video.file_metadata["view_count"], video.file_metadata["mood"]) == (4, "light"), video.file_metadata
        near_now(datetime.fromisoformat(video.file_metadata["last_accessed"]))
        entry = (await session.execute(select(Entry).where(Entry.job_id == WAITING))).scalar_one()
        assert (entry.queue_status, entry.worker_id) == ("queued", "rust-1"), vars(entry)

        # And now we change some: a worker of ours takes the job, a document is read, changed and written.
        entry.queue_status, entry.worker_id, entry.processing_started_at = "processing", "python-2", datetime.utcnow()
        video.file_metadata = {**video.file_metadata, "mood": "dark", "file_hash": "f"}
        made.status, made.result_url = "archived", "https://example.org/python"
        (await session.get_one(User, OURS)).username = "Ada L."
    await times()


def near_now(then):
    assert abs(datetime.now(timezone.utc) - then) < timedelta(minutes=5), then


async def times():
    """What README.md says of them under 'The schema'."""
    assert time.timezone != 0, "to be run where the local time is not UTC"
    async with Session() as session:
        started = (await session.get_one(Job, JOB)).started_at
        # Naive times are written and compared as UTC, whatever the process's time zone; what is read is aware.
        assert started == THEN.replace(tzinfo=timezone.utc), started
        recent = select(Job.id).where(Job.id == JOB, Job.updated_at > datetime.utcnow() - timedelta(minutes=5))
        assert (await session.execute(recent.where(Job.updated_at < datetime.utcnow() + timedelta(minutes=5)))).one()
        try:
            datetime.utcnow() - started
            raise AssertionError("naive and aware times were subtracted")
        except TypeError:
            pass
        # An aware one is refused as a parameter, one that was read before too.
        earlier = select(Job.id).where(Job.started_at <= started)
        try:
            await session.execute(earlier)
            raise AssertionError("an aware time was taken for a naive column")
        except DBAPIError as error:
            assert "offset-naive and offset-aware" in str(error), error
            await session.rollback()
        assert (await session.execute(select(Job.id).where(Job.started_at <= started.replace(tzinfo=None)))).one()
        # A column that is declared with its zone takes both, but a naive one as local time.
        zoned = Table("jobs", MetaData(), Column("id"), Column("started_at", DateTime(timezone=True)))
        found = await session.execute(select(zoned.c.id).where(zoned.c.started_at == started))
        assert found.one().id == JOB
        assert not (await session.execute(select(zoned.c.id).where(zoned.c.started_at == THEN))).all()
    # So does asyncpg by itself, for every naive time.
    conn = await asyncpg.connect(URL)
    moved = await conn.fetchval("SELECT $1 - $2::timestamp AT TIME ZONE 'UTC'", THEN, THEN)
    assert moved == timedelta(seconds=time.timezone), moved
    await conn.close()


asyncio.run({"write": write, "answer": answer}[sys.argv[1]]())
