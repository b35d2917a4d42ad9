"""Tools from typed methods: their schemas, the strict check of arguments, and calls that leave no trace."""

import datetime
import json
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field

from mua.chat import ToolCall
from mua.database import Base, Database
from mua.domain import Change, Domain, Scenario, Task, World
from mua.errors import InfrastructureError, MuaError
from mua.tools import ToolError, ends, reads, render_result, tool_from_function, toolkit_tools, writes


class Address(BaseModel):
    street: str = Field(description="House number and street.")
    city: str
    title: str = "home"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


class Guest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    address: Address | None = None
    age: int | None = Field(None, ge=0)


class Kit:
    """Tools that show what the schema can say, and tools that go wrong in every way."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def book(
        self,
        guests: list[Guest],
        nights: int,
        room: Literal["single", "double"] = "single",
        price: float = 9.5,
        breakfast: bool = False,
        pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None,
        extras: dict[str, int] | None = None,
        note: Any = None,
        default: Address | None = None,
    ) -> dict:
        """Book rooms.

        The price is for each night.

        Args:
            guests: Who comes.
            nights: How many nights.
            room: Kind of room.
        """
        return {
            "guests": [type(g).__name__ for g in guests],
            "addresses": [g.address and g.address.city for g in guests],
            "nights": nights,
            "room": room,
            "price": price,
            "breakfast": breakfast,
        }

    @writes
    def on_day(self, day: datetime.date) -> str:
        """Note a day.

        Args:
            day: The day.
        """
        self.db.put("t", "day", {"day": day.isoformat()})
        return day.isoformat()

    @writes
    def half(self, how: Literal["refuse", "bug", "result", "down"]) -> Any:
        """Write two rows, then go wrong."""
        self.db.delete("t", "k")
        self.db.put("t", "new", {"x": 1})
        if how == "refuse":
            raise ToolError("not like this; give another day")
        if how == "down":
            raise InfrastructureError("the server is gone")
        if how == "bug":
            raise ZeroDivisionError("division")
        return {1, 2}

    @ends
    def leave(self) -> str:
        """Hand over."""
        self.db.put("t", "left", {})
        return "bye"

    @ends
    def try_to_leave(self) -> str:
        """Hand over, but fail."""
        raise ToolError("nobody is there")

    def not_a_tool(self) -> None:
        """Not marked."""


TOOLS = toolkit_tools(Kit)


def world(setup: tuple[Change, ...] = ()) -> World:
    domain = Domain(
        name="kit",
        policy="",
        load_base=lambda: Base({"t": {"k": {"x": 0}}}),
        load_split=lambda split: [],
        splits=("train",),
        toolkits={"assistant": Kit},
    )
    return World(domain, Task("a", "a", Scenario("g"), (), setup))


def test_the_schema_says_all_of_the_signature():
    assert list(TOOLS) == ["book", "on_day", "half", "leave", "try_to_leave"]
    assert [t.effect for t in TOOLS.values()] == ["read", "write", "write", "end", "end"]
    book = TOOLS["book"]
    assert book.description == "Book rooms.\nThe price is for each night."
    p = book.parameters["properties"]
    assert p["guests"]["description"] == "Who comes." and p["nights"]["description"] == "How many nights."
    assert p["room"] == {
        "default": "single",
        "description": "Kind of room.",
        "enum": ["single", "double"],
        "type": "string",
    }
    guest = p["guests"]["items"]
    assert guest["required"] == ["name"] and guest["additionalProperties"] is False
    address = guest["properties"]["address"]["anyOf"][0]
    assert address["properties"]["street"] == {"description": "House number and street.", "type": "string"}
    # a property may be called title; nested models that forbid nothing still take nothing unknown
    assert address["properties"]["title"] == {"default": "home", "type": "string"}
    assert address["additionalProperties"] is False
    assert p["default"]["anyOf"][0]["required"] == ["street", "city"]  # nor is this one a key of the schema
    assert p["extras"]["anyOf"][0] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert book.parameters["required"] == ["guests", "nights"]
    for tool in TOOLS.values():
        jsonschema.Draft202012Validator.check_schema(tool.parameters)
        text = json.dumps(tool.schema())
        assert "$ref" not in text and "$defs" not in text
        assert tool.parameters["additionalProperties"] is False


def test_functions_that_would_give_a_loose_tool_are_refused():
    def undocumented(x: int):
        pass

    def untyped(x):
        """Something."""

    class Node(BaseModel):
        children: list["Node"]

    def endless(x: Node):
        """Something."""

    endless.__annotations__["x"] = Node
    for fn, words in ((undocumented, "docstring"), (untyped, "'x' has no annotation"), (endless, "Node")):
        with pytest.raises(TypeError, match=words):
            tool_from_function(fn)


GUEST = {"name": "A"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"guests": [GUEST]}, "'nights' is missing"),
        ({}, "'guests' is missing; 'nights' is missing"),
        ({"guests": [GUEST], "nights": "2"}, "'nights': '2' is not of type 'integer'"),
        ({"guests": [GUEST], "nights": True}, "'nights': True is not of type 'integer'"),
        ({"guests": [GUEST], "nights": 2.5}, "'nights': 2.5 is not of type 'integer'"),
        ({"guests": [GUEST], "nights": None}, "'nights': None is not of type 'integer'"),
        ({"guests": [GUEST], "nights": 2, "breakfast": 1}, "'breakfast': 1 is not of type 'boolean'"),
        ({"guests": [GUEST], "nights": 2, "price": "9"}, "'price': '9' is not of type 'number'"),
        ({"guests": [GUEST], "nights": 2, "room": "suite"}, "'room': 'suite' is not one of"),
        ({"guests": GUEST, "nights": 2}, "'guests': {'name': 'A'} is not of type 'array'"),
        ({"guests": [GUEST], "nights": 2, "beds": 1, "x": 2}, "unknown argument 'beds', 'x'"),
        ({"guests": [GUEST, {}], "nights": 2}, "'guests.1.name' is missing"),
        ({"guests": [{"name": "A", "sex": 1}], "nights": 2}, "unknown argument 'guests.0.sex'"),
        # inside an optional model the field counts, not "matches no alternative"
        (
            {"guests": [{"name": "A", "address": {"street": "1"}}], "nights": 2},
            "'guests.0.address.city' is missing",
        ),
        (
            {"guests": [{"name": "A", "address": {"street": "1", "city": 5}}], "nights": 2},
            "'guests.0.address.city': 5 is not of type 'string'",
        ),
        ({"guests": [{"name": "A", "age": -1}], "nights": 2}, "'guests.0.age': -1 is less than the minimum"),
        (
            {"guests": [{"name": "A", "age": "x"}], "nights": 2},
            "'guests.0.age': 'x' is not of type 'integer' or 'null'",
        ),
        ({"guests": [GUEST], "nights": 2, "extras": {"bed": "1"}}, "'extras.bed': '1' is not of type"),
        # what the schema cannot tell apart and the type can
        ({"guests": [GUEST], "nights": 1e300}, "'nights': Unable to parse"),
    ],
)
def test_bad_arguments_are_named_with_tool_problem_and_usage(arguments, problem):
    live = world()
    result = live.call("assistant", ToolCall("book", arguments))
    assert result.error and not result.ends
    assert result.content.startswith("Error: book was not called: ")
    assert problem in result.content
    assert "Usage: book(guests: array, nights: integer, room: single|double (optional)" in result.content
    result.content.encode()  # fit for any file


def test_valid_arguments_arrive_as_their_types():
    def call(arguments):
        result = world().call("assistant", ToolCall("book", arguments))
        assert not result.error, result.content
        return json.loads(result.content)

    home = {"street": "1 Elm", "city": "Alton"}
    # 3.0 is an integer in JSON Schema; the method gets an int, and an int where it wants a float
    got = call(
        {
            "guests": [{"name": "A", "address": home, "age": None}, {"name": "B", "age": 3.0}],
            "nights": 3.0,
            "price": 7,
            "pet": {"kind": "cat", "lives": 9},
        }
    )
    assert got["nights"] == 3 and isinstance(got["nights"], int) and isinstance(got["price"], float)
    assert got["guests"] == ["Guest", "Guest"] and got["addresses"] == ["Alton", None]
    assert call({"guests": [], "nights": 1})["room"] == "single"


def test_the_schema_lets_through_what_the_type_refuses():
    live = world()
    before = live.db.digest()
    result = live.call("assistant", ToolCall("on_day", {"day": "soon"}))
    assert result.error and "on_day was not called: 'day'" in result.content and "Usage:" in result.content
    assert live.db.digest() == before
    assert live.call("assistant", ToolCall("on_day", {"day": "2026-03-02"})).content == "2026-03-02"


def test_long_values_do_not_hide_what_is_wrong():
    (text,) = TOOLS["book"].problems({"guests": [], "nights": "9" * 5000})
    assert text.endswith("is not of type 'integer'") and len(text) < 300
    (text,) = TOOLS["leave"].problems({f"{i}{'x' * 500}": 1 for i in range(500)})
    assert len(text) < 1000


def test_calls_that_are_no_calls():
    live = world()
    before = live.db.digest()
    unread = live.call("assistant", ToolCall("leave", {}, "1", "the arguments are not valid JSON", "{"))
    assert unread.error and "not valid JSON" in unread.content
    unknown = live.call("assistant", ToolCall("fly" * 100))
    assert unknown.error and "The tools are: book, on_day" in unknown.content and len(unknown.content) < 300
    for private in ("not_a_tool", "__init__", "db", "_tools", ""):
        assert live.call("assistant", ToolCall(private)).error
    assert live.call("user", ToolCall("leave")).error  # this side has no tools
    assert live.db.digest() == before


@pytest.mark.parametrize("how", ["refuse", "bug", "result", "down"])
def test_a_call_that_fails_after_writing_leaves_no_trace(how):
    live = world()
    live.db.put("t", "kept", {"x": 2})
    before, touched = live.db.digest(), live.db.touched()
    call = ToolCall("half", {"how": how})
    if how == "refuse":
        result = live.call("assistant", call)
        assert result.error and result.content == "Error: not like this; give another day"
    else:
        words = {
            "bug": "'half' of domain 'kit' is broken: ZeroDiv",
            "result": "no JSON form",
            "down": "is gone",
        }
        with pytest.raises(InfrastructureError, match=words[how]):
            live.call("assistant", call)
    assert live.db.digest() == before and live.db.touched() == touched
    assert live.db.get("t", "k") == {"x": 0} and live.db.get("t", "new") is None
    # the toolkit works on the restored state
    assert not live.call("assistant", ToolCall("on_day", {"day": "2026-03-02"})).error
    assert live.db.get("t", "day")


def test_only_a_handover_that_works_ends():
    live = world()
    assert live.call("assistant", ToolCall("leave")).ends
    failed = live.call("assistant", ToolCall("try_to_leave"))
    assert failed.error and not failed.ends


def test_results_are_read_as_text():
    assert render_result("as it is") == "as it is"
    rows = Base({"t": {"k": {"é": [1, {"x": None}]}}}).tables["t"]["k"]
    assert render_result([rows]) == '[{"é": [1, {"x": null}]}]'
    assert json.loads(render_result(Guest(name="A"))) == {"name": "A", "address": None, "age": None}


def test_a_broken_initial_state_is_named():
    for change in (
        Change("t", "absent", None),
        Change("u", "k", {}),
        Change("t", "k", {"x": float("nan")}),
    ):
        with pytest.raises(MuaError, match="task 'a' of domain 'kit' is broken"):
            world((change,))
    assert world((Change("t", "k", None),)).db.get("t", "k") is None


def test_a_task_changed_under_its_old_name_has_its_own_gold():
    from toy import toy_domain

    domain = toy_domain()
    first, second = domain.tasks("train")[:2]
    renamed = Task(first.id, first.kind, second.scenario, second.actions, second.setup)
    assert domain.gold(first).get("orders", "o1")["status"] == "cancelled"
    assert domain.gold(renamed).get("orders", "o2")["status"] == "cancelled"
    assert domain.gold(renamed).get("orders", "o1")["status"] == "sent"
