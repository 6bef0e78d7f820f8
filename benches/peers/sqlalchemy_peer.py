"""SQLAlchemy 2 (async ORM) on asyncpg, pre-ping on: the stack that t2m-db replaces. Speaks the lines of src/drive.rs."""

import asyncio
import resource
import sys
import time

import uvloop
from sqlalchemy import BigInteger, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger, server_default="0")
    seen: Mapped[int] = mapped_column(server_default="0")


url, pool, items = sys.argv[1].replace("postgres://", "postgresql+asyncpg://"), int(sys.argv[2]), int(sys.argv[3])
engine = create_async_engine(url, pool_size=pool, max_overflow=0, pool_pre_ping=True, pool_timeout=60)
Session = async_sessionmaker(engine, expire_on_commit=False)
rows = [{"name": f"entry {n} of many", "size": n} for n in range(1000)]


async def checkout(_):
    async with engine.connect():
        await asyncio.sleep(0)


async def w1(id):
    async with Session.begin() as session:
        assert (await session.execute(select(Item).where(Item.id == id))).scalar_one().id == id


async def w2(_):
    async with Session.begin() as session:
        entry = Entry(name="an entry")
        session.add(entry)
        await session.flush()
        done = await session.execute(
            update(Entry).where(Entry.id == entry.id).values(seen=Entry.seen + 1),
            execution_options={"synchronize_session": False},
        )
        assert done.rowcount == 1


async def w3(id):
    async with Session() as session:
        assert (await session.execute(select(Item).where(Item.id == id))).scalar_one().id == id


async def w4(id):
    async with Session() as session:
        page = select(Item).where(Item.id > id).order_by(Item.id).limit(20)
        assert len((await session.execute(page)).scalars().all()) == 20


async def w5(_):
    async with Session.begin() as session:
        await session.execute(insert(Entry), rows)


WORK = {"Checkout": checkout, "W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5}


async def load(work, tasks, units, seconds):
    latencies, end, least = [], time.perf_counter() + seconds, -(-units // tasks)

    async def each(task):
        before, n = time.perf_counter(), 0
        while n < least or before < end:
            await work((n + task * 1000) * 7919 % (items - 20) + 1)
            now = time.perf_counter()
            latencies.append(now - before)
            before, n = now, n + 1

    await asyncio.gather(*map(each, range(tasks)))
    return latencies


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


async def main():
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, tasks, warm, seconds = line.split()
        work, tasks = WORK[name], int(tasks)
        await load(work, tasks, int(warm), 0)
        with open("/proc/self/clear_refs", "w") as peak_starts_anew:
            peak_starts_anew.write("5")
        began, cpu_before = time.perf_counter(), cpu()
        latencies = sorted(await load(work, tasks, 1, float(seconds)))
        took, used = time.perf_counter() - began, cpu() - cpu_before
        at = [latencies[round((len(latencies) - 1) * part)] * 1e3 for part in (0.5, 0.99, 0.999, 1)]
        print(len(latencies) / took, *at, used / len(latencies) * 1e6, peak(), flush=True)


uvloop.run(main())
