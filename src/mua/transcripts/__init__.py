"""Real conversations → what training takes from them: who the users are, how they behave, what they want.

    read        a line of OpenAI's chat format → messages, or what is wrong with it, by field
    redact      personal data → made-up data, the same throughout a conversation
    behave      which behaviours (`users.personas`) a user shows, and how often they occur
    draft       a scenario of each conversation, by rules or by a teacher
    build       all of it for a file, as `mua import` does it
    distance    how far simulated users are from the imported ones

Invariant: nothing of a conversation is written before it is redacted, but for lines that could not be read,
which are kept aside as they came.
"""
