"""Exercises with solutions that the tests check. The pages show each statement, and hide its solution."""
