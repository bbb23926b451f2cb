import unittest

from app import DAYS, Selector, parse
from componentize_py_types import Err
from wit_world.exports.selector import Request


class WeekdayTest(unittest.TestCase):
    def test_days_that_are_not_named_have_the_default(self):
        self.assertEqual(parse('{"default": 6, "sat": 2, "sun": 1}'), [6, 6, 6, 6, 6, 2, 1])

    def test_only_the_first_candidates_of_a_quiet_day_take_turns(self):
        request = Request(counter="example/1", amount=1, key_hash=7, candidates=[4, 9, 1])
        for count, expected in [(1, {4}), (2, {4, 9}), (3, {4, 9, 1}), (100, {4, 9, 1})]:
            Selector().configure(f'{{"default": {count}}}')
            Selector().refresh(None)
            self.assertEqual({Selector().select(request) for _ in range(9)}, expected)

    def test_each_config_that_makes_no_sense_is_refused_by_name(self):
        for config, named in [
            ("", "JSON object"),
            ("[1]", "default"),
            ("{}", "default"),
            ('{"default": 3, "someday": 1}', "'someday'"),
            ('{"default": 0}', "'default'"),
            ('{"default": 1.5}', "'default'"),
            ('{"default": true}', "'default'"),
            ('{"default": 3, "sun": "1"}', "'sun'"),
        ]:
            with self.subTest(config), self.assertRaises(Err) as refused:
                parse(config)
            self.assertIn(named, refused.exception.value)

    def test_there_are_seven_days(self):
        self.assertEqual(len(DAYS), 7)


if __name__ == "__main__":
    unittest.main()
