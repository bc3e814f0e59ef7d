import socket
import unittest

from clojars import nailgun
from clojars.server import Server


class NailgunTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Server(0, nailgun.handler("9.9"))
        self.client = self.connect()

    def tearDown(self) -> None:
        self.client.close()
        self.server.close_listener()
        self.server.finish()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=5)

    def test_an_upload_is_greeted_and_acknowledged(self) -> None:
        self.assertEqual(self.client.recv(100), b"nailgun 9.9\n")
        self.client.sendall(b"x" * 1000)
        self.client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.client.recv(100), b"received 1000 bytes\n")

    def test_a_stop_takes_nothing_new_and_finishes_what_was_begun(self) -> None:
        self.assertEqual(self.client.recv(100), b"nailgun 9.9\n")
        self.server.close_listener()
        with self.assertRaises(ConnectionRefusedError):
            self.connect()
        self.client.sendall(b"x" * 1000)
        self.client.shutdown(socket.SHUT_WR)
        self.server.finish()
        self.assertEqual(self.client.recv(100), b"received 1000 bytes\n")
