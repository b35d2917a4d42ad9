"""Upstream's own BFCL code, run as an oracle: a script, in a process that shares nothing with mua.

    python bfcl_upstream.py FOLDER      # FOLDER: where the package is unpacked; JSON lines in and out

Each request is answered in a fork, because upstream keeps instances in module globals; with "here": true
it is not (for timing), and the instances are dropped afterwards. Requests:
{"id", "result", "mode"} → its verdict; the same with "play": true → its whole harness, with a scripted model;
{"prompts": id, "mode"} → what a model is shown; {"decode": step, "mode"} → call texts.
Each reply says in "seconds" how long upstream's code took, and in "cpu" what it worked.
"""

import __future__

import ast
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path

STUBBED = {
    "dotenv",
    "filelock",
    "openai",
    "overrides",
    "tenacity",
    "tqdm",
    "tree_sitter",
    "tree_sitter_java",
    "tree_sitter_javascript",
}
"""Dependencies that the multi-turn code imports and does not need."""


BACKENDS = (
    "gorilla_file_system",
    "math_api",
    "message_api",
    "posting_api",
    "ticket_api",
    "trading_bot",
    "travel_booking",
    "vehicle_control",
)


class _Anything:
    """Serves as a function, a decorator, a context manager."""

    def __call__(self, *args, **named):
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in STUBBED else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _Anything()  # type: ignore[method-assign]
        return module

    def exec_module(self, module):
        pass


def functions_of(path, names, scope):
    """Runs the definitions of `names` in a file of upstream, and nothing else of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            module = ast.Module(body=[node], type_ignores=[])
            exec(compile(module, str(path), "exec", __future__.annotations.compiler_flag), scope)


class Upstream:
    def __init__(self, folder):
        os.environ["BFCL_PROJECT_ROOT"] = tempfile.mkdtemp(prefix="bfcl-oracle-")
        sys.path.insert(0, folder)
        sys.meta_path.insert(0, _Stubs())
        package = Path(folder, "bfcl_eval")
        from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils
        from bfcl_eval.model_handler import base_handler, utils

        self.utils, self.base = utils, base_handler
        self.v3 = not (package / "constants" / "enums.py").exists()
        data = next((package / "data").glob("BFCL_v*_multi_turn_base.json"))
        self.prefix, self.data = data.name.partition("_multi_turn")[0], package / "data"
        self.package = package
        self.scope = {
            "is_empty_execute_response": multi_turn_utils.is_empty_execute_response,
            "multi_turn_checker": multi_turn_checker.multi_turn_checker,
            "VERSION_PREFIX": self.prefix,
            "write_list_of_dicts_to_file": lambda name, result, folder: self.written.append(result),
        }
        names = {"_evaluate_single_multi_turn_entry", "multi_turn_runner"}
        functions_of(package / "eval_checker" / "eval_runner.py", names, self.scope)
        self.hermes = {"json": json, "re": __import__("re"), **vars(utils)}
        functions_of(
            package / "model_handler" / "local_inference" / "qwen_fc.py",
            {"decode_execute", "_extract_tool_calls"},
            self.hermes,
        )
        self.written = []
        self.client = None
        self.entries, self.gold = {}, {}
        for backend in BACKENDS:  # before the forks
            importlib.import_module(f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{backend}")

    def entry(self, entry_id):
        category = entry_id.rsplit("_", 1)[0]
        if entry_id not in self.entries:
            for store, where in ((self.entries, self.data), (self.gold, self.data / "possible_answer")):
                lines = (where / f"{self.prefix}_{category}.json").read_text(encoding="utf-8").splitlines()
                store.update((e["id"], e) for e in map(json.loads, lines))
        return json.loads(json.dumps(self.entries[entry_id])), self.gold[entry_id]

    def handler(self, mode):
        oracle = self

        class Handler:
            _extract_tool_calls = staticmethod(oracle.hermes.get("_extract_tool_calls"))

            def decode_execute(self, result, has_tool_call_tag=False):
                if mode == "fc":
                    return oracle.utils.convert_to_function_call(result)
                if mode == "prompt":
                    return oracle.utils.default_decode_execute_prompting(result)
                more = () if oracle.v3 else (False,)
                return oracle.hermes["decode_execute"](self, result, *more)

        return Handler()

    def verdict(self, request):
        entry, gold = self.entry(request["id"])
        category = entry["id"].rsplit("_", 1)[0]
        handler = self.handler(request["mode"])
        if self.v3:
            self.written = []
            answer = [{"id": entry["id"], "result": request["result"]}]
            self.scope["multi_turn_runner"](handler, answer, [entry], [gold], "mua", category, Path())
            lines = [line for line in self.written[0] if "valid" in line]
            found = lines[0] if lines else {"valid": True}
        else:
            found = self.scope["_evaluate_single_multi_turn_entry"](
                handler, entry["id"], request["result"], gold["ground_truth"], entry, "mua", category
            )
        return {"valid": found["valid"], "error_type": found.get("error", {}).get("error_type")}

    def populated(self, entry_id):
        entry, _ = self.entry(entry_id)
        scope = {**vars(self.utils), "MULTI_TURN_FUNC_DOC_PATH": self.data / "multi_turn_func_doc"}
        if self.v3:
            from bfcl_eval.utils import is_multi_turn, load_file

            scope |= {"load_file": load_file, "is_multi_turn": is_multi_turn}
            scope["MULTI_TURN_FUNC_DOC_FILE_MAPPING"] = self._mapping()
            path = self.package / "_llm_response_generation.py"
            functions_of(path, {"process_multi_turn_test_case"}, scope)
            return scope["process_multi_turn_test_case"]([entry])[0]
        from bfcl_eval.utils import (
            add_language_specific_hint_to_function_doc,
            populate_test_cases_with_predefined_functions,
        )

        entries = populate_test_cases_with_predefined_functions([entry])
        return add_language_specific_hint_to_function_doc(entries)[0]

    def _mapping(self):
        from bfcl_eval.constants import category_mapping

        return category_mapping.MULTI_TURN_FUNC_DOC_FILE_MAPPING

    def prompts(self, request):
        """{"system", "tools": by turn, "users": by turn} as the OpenAI handler would send them."""
        from bfcl_eval.constants import default_prompts
        from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI

        entry = self.populated(request["prompts"])
        if self.v3:
            from bfcl_eval.model_handler.model_style import ModelStyle

            style = ModelStyle.OpenAI_Completions
            hinted = self.utils.func_doc_language_specific_pre_processing
            shown = hinted(entry["function"], "multi_turn")
        else:
            from bfcl_eval.constants.enums import ModelStyle

            style, shown = ModelStyle.OPENAI_COMPLETIONS, entry["function"]
        out = {"system": "", "tools": [], "users": []}
        functions = list(shown)
        if request["mode"] == "prompt":
            opening = [dict(m) for m in entry["question"][0]]
            first = self.utils.system_prompt_pre_processing_chat_model(opening, shown, entry["id"])
            out["system"] = first[0]["content"]
        for turn, messages in enumerate(entry["question"]):
            new = entry.get("missed_function", {}).get(str(turn))
            if new is not None and request["mode"] == "prompt":
                text = default_prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING
                out["users"].append(text.format(functions=new))
                continue
            if new is not None:
                functions += hinted(new, "multi_turn") if self.v3 else new
                out["users"].append(default_prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC)
            else:
                out["users"].append(messages[0]["content"])
            if request["mode"] == "fc":
                out["tools"].append(self.utils.convert_to_tool(functions, GORILLA_TO_OPENAPI, style))
        return out

    def play(self, request):
        """Upstream's harness: its OpenAI handler with a model that answers from a script, the result written
        to its file and read back, its verdict. Function calling only."""
        entry = self.populated(request["id"])
        script = iter([step for turn in request["result"] for step in turn])
        handler = self.scripted(script)
        with open(os.devnull, "w") as nothing:
            out, sys.stdout = sys.stdout, nothing
            try:
                result, metadata = handler.inference(entry, False, False)
            finally:
                sys.stdout = out
        with tempfile.TemporaryDirectory() as folder:
            handler.write({"id": entry["id"], "result": result, **metadata}, Path(folder))
            (file,) = Path(folder).rglob("*_result.json")
            line = json.loads(file.read_text(encoding="utf-8"))
        return {**self.verdict({**request, "result": line["result"]}), "result": line["result"]}

    def scripted(self, script):
        from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

        def completion(**named):
            step = next(script)
            made = types.SimpleNamespace
            calls = None
            if isinstance(step, list):
                pairs = [next(iter(call.items())) for call in step]
                calls = [
                    made(id=str(i), function=made(name=n, arguments=a)) for i, (n, a) in enumerate(pairs)
                ]
            message = made(content=step if calls is None else "", tool_calls=calls)
            usage = made(prompt_tokens=0, completion_tokens=0)
            return made(choices=[made(message=message)], usage=usage), 0.0

        os.environ["OPENAI_API_KEY"] = "none"
        named = {} if self.v3 else {"registry_name": "mua-FC", "is_fc_model": True}
        if self.client is None:
            self.client = OpenAICompletionsHandler(model_name="mua-FC", temperature=0, **named)
        self.client.generate_with_backoff = completion
        return self.client

    def forget(self):
        """Drops the instances that upstream keeps in its module's globals."""
        kept = vars(sys.modules["bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils"])
        for name in [n for n in kept if n.endswith("_instance")]:
            del kept[name]

    def answer(self, request):
        if "decode" in request:
            try:
                texts = self.handler(request["mode"]).decode_execute(request["decode"])
                return {"texts": [] if self.scope["is_empty_execute_response"](texts) else texts}
            except Exception:
                return {"texts": []}
        if "prompts" in request:
            return self.prompts(request)
        return self.play(request) if request.get("play") else self.verdict(request)


def in_fork(function):
    """What the function returns, run in a fork of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            reply = function()
        except Exception as exc:
            reply = {"crashed": f"{type(exc).__name__}: {exc}"}
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(reply))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


def main():
    upstream = Upstream(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            upstream.entry(request["id"])  # reading the data is done once, before the fork

        def timed(request=request):
            began, worked = time.perf_counter(), time.process_time()
            reply = upstream.answer(request)
            times = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - worked}
            return {**reply, **times}

        print(json.dumps(timed() if request.get("here") else in_fork(timed)), flush=True)
        upstream.forget()


if __name__ == "__main__":
    main()
