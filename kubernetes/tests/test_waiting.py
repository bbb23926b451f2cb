"""What a wait takes for "not yet", and what for a failure."""

import unittest

from waiting import NotNow, wait


class Waiting(unittest.TestCase):
    def test_what_is_not_there_now_is_waited_for(self):
        answers = iter([NotNow("the pod is being replaced"), None, 7])

        def check():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.assertEqual(wait("an answer", check), 7)

    def test_the_end_says_the_last_reason(self):
        def check():
            raise NotNow("GET pods/quipu-1: 404")

        with self.assertRaisesRegex(AssertionError, r"not within 0 s: a pod \(GET pods/quipu-1: 404\)"):
            wait("a pod", check, patience=0)

    def test_a_mistake_is_no_wait(self):
        with self.assertRaises(KeyError):
            wait("a field", lambda: {}["status"])
        with self.assertRaisesRegex(AssertionError, "ended by itself"):
            wait("a node", self.ended)

    def ended(self):
        raise AssertionError("it ended by itself")


if __name__ == "__main__":
    unittest.main()
