"""The doctor's probe and diagnosis: would a run start?"""
