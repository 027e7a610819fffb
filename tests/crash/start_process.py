"""A process of an app: it starts the runs of many ids, in its own order, and prints each id with its run."""

import random
import sys
import threading

import durably
from durably import Client, ContextSync
from durably.comm import CommHandler
from durably.engine.model.settings import EngineSettings


def main(database: str, count: int, seed: int) -> None:
    client = Client(app_id="shop", engine=durably.Embedded(database, settings=EngineSettings()), is_production=False)

    @client.create_function(fn_id="place", trigger=[])
    def place(ctx: ContextSync) -> int:
        return ctx.step.run("pay", lambda: int(ctx.event.data["n"]))

    CommHandler(client=client, framework="test", functions=[place])
    client.engine.start_sync()  # type: ignore[union-attr]
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    for number in numbers:
        handle = place.start_sync({"n": number}, id=f"order-{number}")
        print(number, handle.id, flush=True)
    print("done", flush=True)
    for number in numbers[:: max(count // 20, 1)]:
        assert place.start_sync({"n": number}, id=f"order-{number}").result_sync(timeout="60s") == number
    print("ended", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
