"""Uses etcd3gw as its README does, and prints what came of each call:

    basic.py HOST PORT

What differs between two systems that behave alike is left out: who they are, the IDs of leases, and which numbers their
revisions have. Equal revisions stay equal.
"""

import sys
from base64 import b64encode

from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception

client = Etcd3Client(host=sys.argv[1], port=int(sys.argv[2]), api_path="/v3/", timeout=30)
labels = {}


def normal(answer):
    """An answer without what may differ."""
    if isinstance(answer, dict):
        kept = {name: value for name, value in answer.items() if name not in ("header", "lease")}
        if "lease" in answer:
            kept["lease"] = "one"
        for name in ("create_revision", "mod_revision"):
            if name in kept:
                kept[name] = labels.setdefault(kept[name], f"#{len(labels) + 1}")
        return {name: normal(kept[name]) for name in sorted(kept)}
    if isinstance(answer, (list, tuple)):
        return [normal(one) for one in answer]
    return answer


def show(what, call, *args, **kwargs):
    """Prints what a call returns or raises, and returns it."""
    try:
        answer = call(*args, **kwargs)
    except Etcd3Exception as e:
        print(what, "raises", type(e).__name__, e)
        return None
    print(what, normal(answer))
    return answer


def b64(text):
    """A key or value within a transaction or an option, which etcd3gw sends as it is."""
    return b64encode(text.encode()).decode()


# Keys
show("get nothing", client.get, "basic/a")
show("put", client.put, "basic/a", "1")
show("get", client.get, "basic/a")
show("get with metadata", client.get, "basic/a", metadata=True)
show("put again", client.put, "basic/a", "")
show("get an empty value", client.get, "basic/a", metadata=True)
show("bytes", client.put, b"basic/\x00\xff", b"\x00\xff")
show("get bytes", client.get, b"basic/\x00\xff")
show("put without a key", client.put, "", "1")
show("create", client.create, "basic/b", "1")
show("create what is there", client.create, "basic/b", "2")
show("replace", client.replace, "basic/b", "1", "3")
show("replace another value", client.replace, "basic/b", "1", "4")
show("put c", client.put, "basic/c", "2")
for order in ("ascend", "descend"):
    for target in ("key", "version", "create", "mod", "value"):
        show(f"prefix {order} {target}", client.get_prefix, "basic/", order, target)
show("limit", client.get, "basic/", range_end=b64("basic0"), limit=2)
show("all", client.get_all)
print("status", sorted(client.status()))
print("members", sorted(client.members()[0]))
show("delete", client.delete, "basic/c")
show("delete nothing", client.delete, "basic/c")

# Transactions
put = {"request_put": {"key": b64("basic/t"), "value": b64("1")}}
get = {"request_range": {"key": b64("basic/"), "range_end": b64("basic0")}}
absent = {"key": b64("basic/t"), "result": "EQUAL", "target": "CREATE", "create_revision": 0}
for run in ("held", "not held"):
    show(f"txn {run}", client.transaction, {"compare": [absent], "success": [put, get], "failure": [get]})
show("txn of nothing", client.transaction, {})
show("txn with a key twice", client.transaction, {"success": [put, put]})
older = {"key": b64("basic/t"), "result": "LESS", "target": "VERSION", "version": 2}
remove = {"request_delete_range": {"key": b64("basic/t"), "prev_kv": True}}
for run in ("version 1", "version 0"):
    show(f"txn {run}", client.transaction, {"compare": [older], "success": [remove, get]})

# Leases
lease = client.lease(ttl=300)
show("put with a lease", client.put, "basic/lease/a", "1", lease)
show("create with a lease", client.create, "basic/lease/b", "1", lease)
show("get with a lease", client.get_prefix, "basic/lease/")
print("ttl", 290 < lease.ttl() <= 300)
show("refresh", lease.refresh)
print("keys", sorted(lease.keys()))
show("revoke", lease.revoke)
show("revoke again", lease.revoke)
show("ttl when it is gone", lease.ttl)
show("keys when it is gone", lease.keys)
show("refresh when it is gone", lease.refresh)
show("put when it is gone", client.put, "basic/lease/a", "1", lease)
show("get when it is gone", client.get_prefix, "basic/lease/")

# Locks
one, two = client.lock(id="basic", ttl=300), client.lock(id="basic", ttl=300)
for name, lock in (("one", one), ("two", two)):
    show(f"{name} acquires", lock.acquire)
    show(f"{name} is acquired", lock.is_acquired)
show("two releases", two.release)
show("one refreshes", one.refresh)
show("one releases", one.release)
show("one releases again", one.release)
show("two acquires at last", two.acquire)
show("its lease is revoked", two.lease.revoke)
show("one acquires again", one.acquire)
show("one releases at last", one.release)

# Watches
events, cancel = client.watch_prefix("basic/watch/", prev_kv=True)
client.put("basic/watch/a", "1")
client.put("basic/watch/a", "2")
lease = client.lease(ttl=300)
client.put("basic/watch/b", "3", lease)
lease.revoke()
client.transaction({"success": [
    {"request_put": {"key": b64("basic/watch/c"), "value": b64("4")}},
    {"request_delete_range": {"key": b64("basic/watch/a")}},
]})
for i in range(6):
    show(f"event {i}", next, events)
cancel()
first = int(client.get("basic/watch/c", metadata=True)[0][1]["create_revision"])
show("watch what was", client.watch_once, "basic/watch/c", timeout=30, start_revision=first)
show("watch a range that was", client.watch_prefix_once, "basic/watch/", timeout=30, start_revision=first,
     filters=["NOPUT"])
show("delete all", client.delete_prefix, "basic/")
show("nothing is left", client.get_all)
