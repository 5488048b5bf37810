"""Runs the tests that a Python package of Debian has of itself against a system that answers etcd's v3 JSON API:

    suite.py (tooz | etcd3gw) HOST PORT

The package is as Debian has it. Printed is a line for each test, its name and ok, skipped or FAILED; why it failed is
on stderr. The exit code is 0 unless the tests could not be run.
"""

import functools
import logging
import os
import sys
import unittest
from unittest import mock

import etcd3gw
from etcd3gw.client import Etcd3Client

logging.disable(logging.CRITICAL)


def tooz(host, port):
    # The driver of tooz 3.1.0 gives the path of the API to etcd3gw.client(). That of Debian's etcd3gw 2.0.0 does not take
    # it, although the class does: without this the driver raises a TypeError before it sends anything, with etcd too.
    etcd3gw.client = Etcd3Client
    os.environ["TOOZ_TEST_URL"] = f"etcd3+http://{host}:{port}?api_version=v3"
    from tooz.tests import test_coordination

    return test_coordination


def etcd3gw_itself(host, port):
    # Its tests know one address, and skip themselves at import if nothing answers there.
    with mock.patch("urllib3.PoolManager"):
        from etcd3gw.tests import test_etcd3gw
    test_etcd3gw.Etcd3Client = functools.partial(Etcd3Client, host=host, port=port, api_path="/v3/")
    return test_etcd3gw


class Result(unittest.TestResult):
    def addSuccess(self, test):
        print(test.id(), "ok")

    def addSkip(self, test, reason):
        print(test.id(), "skipped")

    def addFailure(self, test, err):
        print(test.id(), "FAILED")
        print(test.id(), self._exc_info_to_string(err, test), file=sys.stderr)

    addError = addFailure


package, host, port = sys.argv[1:]
module = {"tooz": tooz, "etcd3gw": etcd3gw_itself}[package](host, int(port))
unittest.defaultTestLoader.loadTestsFromModule(module).run(Result())
sys.stdout.flush()
os._exit(0)  # threads of the tests may still be waiting
