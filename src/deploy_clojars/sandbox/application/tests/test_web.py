import json
import unittest
from http.client import HTTPConnection

from clojars import web
from clojars.server import Server


class WebTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Server(0, web.handler("9.9"))

    def tearDown(self) -> None:
        self.server.close_listener()
        self.server.finish()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=5)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def test_the_front_page_names_the_release(self) -> None:
        status, page = self.ask("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("<h1>Clojars 9.9</h1>", page)

    def test_the_release_is_told_to_programs(self) -> None:
        self.assertEqual(self.ask("GET", "/version"), (200, "9.9"))

    def test_uploads_are_counted(self) -> None:
        self.assertEqual(self.ask("PUT", "/upload/ring", b"x" * 100_000), (200, "100000"))
        self.assertEqual(self.ask("POST", "/upload/ring", b""), (200, "0"))
        self.assertEqual(json.loads(self.ask("GET", "/uploads")[1]), {"ring": 2})

    def test_what_is_not_there_is_not_found(self) -> None:
        self.assertEqual(self.ask("GET", "/nothing")[0], 404)
        self.assertEqual(self.ask("PUT", "/nothing", b"")[0], 404)
