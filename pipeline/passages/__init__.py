"""Counts parts and crossings: passages of tracked objects through zones and over lines, each with a verdict."""
