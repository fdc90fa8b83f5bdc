"""`drifa serve`: one case in the browser, or by JSON, answered by a network that stays warm.

    upload ─ uploads ─ decoding (a process with limits) ─ batching ─ predictor
                                                             └─ answers ─ pages or JSON

What a case holds lives in memory alone and is gone when its answer is, or a few minutes later.
Needs the extra "serve" (starlette, uvicorn, python-multipart), and Linux: uploads lie in files of
memory, and the process that decodes them is held by the limits of the system.
"""
