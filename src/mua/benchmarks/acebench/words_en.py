"""English wording of our own: what the functions answer, and the prompts.

Used where upstream's repository is not installed in full; `words.load` takes upstream's otherwise. Within a
function, answers stand in the order in which upstream's function gives them: that is how the two are matched.
"""

TEXTS = {
    "turn_on_wifi.done": "Wi-Fi is on now",
    "login_device.done": "The device is logged in now",
    "send_message.logged_out": "Nobody is logged in on the device, so no message can be sent",
    "send_message.no_wifi": "Wi-Fi is off, so no message can be sent",
    "send_message.full": "The inbox is full. Ask the user which message is to be deleted.",
    "send_message.nobody": "There is no such sender or receiver",
    "send_message.done": "The message to {} was sent.",
    "delete_message.logged_out": "Nobody is logged in on the device, so no message can be deleted",
    "delete_message.missing": "There is no message with this id",
    "delete_message.done": "Message {} was deleted.",
    "view_messages_between_users.logged_out": "Nobody is logged in on the device, so no message can be shown",
    "view_messages_between_users.no_sender": "There is no such sender",
    "view_messages_between_users.no_receiver": "There is no such receiver",
    "view_messages_between_users.none": "There are no messages between the two",
    "search_messages.nobody": "There is no such user",
    "search_messages.none": "No message has this keyword",
    "get_all_message_times_with_ids.logged_out": "Nobody is logged in on the device, so times stay hidden",
    "get_latest_message_id.logged_out": "Nobody is logged in on the device, so it is unknown",
    "get_latest_message_id.empty": "There are no messages",
    "get_latest_message_id.done": "The latest message has the id {}",
    "get_earliest_message_id.logged_out": "Nobody is logged in on the device, so it is unknown",
    "get_earliest_message_id.empty": "There are no messages",
    "get_earliest_message_id.done": "The earliest message has the id {}",
    "view_reminder_by_title.logged_out": "Nobody is logged in on the device, so no reminder can be shown",
    "view_reminder_by_title.none": "No reminder has the title '{}'.",
    "add_reminder.logged_out": "Nobody is logged in on the device, so no reminder can be added",
    "add_reminder.full": "The list of reminders is full, so none can be added",
    "add_reminder.done": "The reminder '{}' was added.",
    "delete_reminder.logged_out": "Nobody is logged in on the device, so no reminder can be deleted",
    "delete_reminder.missing": "There is no reminder with this id",
    "delete_reminder.done": "Reminder {} was deleted.",
    "view_all_reminders.empty": "There are no reminders",
    "mark_as_notified.missing": "There is no reminder with this id",
    "mark_as_notified.done": "Reminder {} counts as notified now",
    "search_reminders.none": "No reminder has this keyword",
    "login_food_platform.no_wifi": "Wi-Fi is off, so nobody can log in",
    "login_food_platform.nobody": "There is no such user",
    "login_food_platform.password": "The password is wrong",
    "login_food_platform.already": "{} is logged in already",
    "login_food_platform.done": "{} is logged in now",
    "view_logged_in_users.none": "Nobody is logged in on the food platform",
    "add_food_delivery_order.logged_out": "{} is not logged in on the food platform",
    "add_food_delivery_order.no_merchant": "There is no such merchant",
    "add_food_delivery_order.quantity": "{} is no possible quantity of {}",
    "add_food_delivery_order.no_product": "There is no {} on the menu of {}",
    "add_food_delivery_order.balance": "The balance is too small for this order",
    "add_food_delivery_order.done": "The order at {} was placed. It costs {} yuan",
    "get_products.missing": "There is no merchant '{}'",
    "view_orders.none": "The user has ordered nothing",
    "search_orders.none": "No order has this keyword",
    "get_flight_details.none": "No direct flight fits.",
    "get_user_details.wrong": "User id or password is wrong.",
    "get_reservation_details.which": "A reservation id or a user id is needed",
    "authenticate_user.wrong": "User id or password is wrong.",
    "find_transfer_flights.none": "No pair of connecting flights fits.",
    "reserve_flight.login": "User id or password is wrong.",
    "reserve_flight.payment": "Payment is by cash or bank only",
    "reserve_flight.cash": "There is too little cash for this; another way of payment may do.",
    "reserve_flight.bank": "There is too little on the bank account for this; another way of payment may do.",
    "reserve_flight.done": "Booked as {}. It costs {} yuan, baggage included.",
    "modify_flight.no_reservation": "This user has no such reservation.",
    "modify_flight.no_flight": "The flight of this reservation is unknown.",
    "modify_flight.nobody": "There is no such user.",
    "modify_flight.flight": "The flight was changed.",
    "modify_flight.wrong_flight": "The flight was not changed: there is none of this number on this route.",
    "modify_flight.cabin": "The cabin was changed. {} was paid for it.",
    "modify_flight.poor": "The balance is too small for the difference between the cabins.",
    "modify_flight.refund": "The cabin was changed. {} was paid back.",
    "modify_flight.bags": "Baggage was added. {} was paid for it.",
    "modify_flight.bags_poor": "The balance is too small for the baggage.",
    "modify_flight.nothing": "Done; there was nothing to pay.",
    "cancel_reservation.nobody": "There is no such user.",
    "cancel_reservation.no_reservation": "This user has no such reservation.",
    "cancel_reservation.no_flight": "The flight of this reservation is unknown.",
    "cancel_reservation.used": "The flight has departed, so it cannot be cancelled.",
    "cancel_reservation.airline": "The airline cancelled the flight. {} yuan were paid back in full.",
    "cancel_reservation.free": "More than a day is left, so cancelling is free. {} yuan were paid back.",
    "cancel_reservation.late": "Less than a day is left. A fee of {} yuan was kept; {} yuan were paid back.",
}

_CALLS = """\
A step is either calls or words, never both. Calls are written as [Name(key='value', other=2)], several as
[Name(...), Name(...)], with nothing before or after the brackets: no explanation, no code fence, no
result."""

PROMPTS = {
    "turn_system": f"""\
You are the agent in a conversation of three: "user" is the person, "agent" is you, "execution" runs your
calls and reports what they gave. You are given the functions and the conversation so far; write the agent's
next step.
- When everything that a call needs is known, make the call. {_CALLS}
- A parameter that is not described as required may be left out; give those that the user spoke of, in the
  user's own words unless the description asks for a format.
- When something is missing, ask the user for it. Never answer in the user's place.

These are the rules of your work:
""",
    "turn_user": "The functions:\n{functions}\n\nThe conversation so far:\n{history}",
    "travel": """\
It is 08:00 on 15 July 2024, Beijing time. You work for an airline: you book, change and cancel flights.
- Before anything is booked, changed or cancelled, say what exactly you are going to do and wait for a clear
  "yes". Do not ask twice about the same thing.
- Say only what the user or the functions told you; give no opinions. Refuse what these rules do not allow.
  Hand over to a human only what is out of your reach.
- One function at a time; several calls of the same function may go together.
Booking: get user id and password first, then where from and where to. Look for flights, then book. There and
back is two bookings. Where no direct flight fits, look for two connecting ones by a city that the user names,
and book both, in one step if you like. Ask whether payment is by cash or bank. Free pieces of baggage,
economy / business: regular 1 / 2, silver 2 / 3, gold 3 / 3. Each further piece costs 50 yuan.
Changing: get user id and password first; reservations can be looked up by user id. Another flight must be
on the same route; find its number among the flights. Another cabin costs, or gives back, the difference,
and must be the same for all flights of a reservation. Baggage can be added, not taken away. When the flight
changes, ask how to pay or to be refunded. The functions do not check these rules: you do.
Cancelling: get user id, reservation id and the reason (other plans, cancelled by the airline, other). It is
possible within a day of booking, when the airline cancelled, and always in business class; else, on the last
day before departure, economy class loses 20 per cent of the price. A journey of which a part was flown cannot
be cancelled: hand over to a human. Money goes back to the user's account.
Compensation: only for silver, gold or business travellers who complain and ask for it: 200 yuan a person
for a cancelled flight; 100 yuan a person for a delayed one that is then changed or cancelled. Never offer
it yourself.
When all is done, write "finish conversation".""",
    "base": """\
It is 16:00 on 11 June 2024, Beijing time. You are the assistant on a phone: you send text messages, keep
reminders and order food.
- Say only what the user or the functions told you; give no opinions. Refuse what these rules do not allow.
- One function at a time; several calls of the same function may go together.
- When something is missing, or a call fails, ask the user. Names are full names.
Sending a message: know sender and receiver first. When the memory is full, ask which message to delete.
Reading messages: log in to the device by login_device() first, and know sender and receiver. Afterwards ask
whether to make a reminder of it and whether to reply; when the message is about food, ask whether to order
it.
Reminders: know title and content first; the time is now unless something else is said. When the content is
that of a message, read the message first. After showing a reminder, ask whether to do what it says.
Food: get user name and password first and log in by login_food_platform(). Ask for merchant, product and
quantity where they are missing. Order from one merchant at a time. When the balance is too small, say so
and ask whether to change the order.
Tell the user how things went, and do not repeat a call that was made. When all is done, write "finish
conversation".""",
    "step_system": f"""\
You solve a task alone, by calls of functions. "user" is who set the task, "agent" is you, "execution" runs
your calls and reports what they gave. You are given the functions, the task and what the calls gave so far;
write the next step.
- {_CALLS} Make one call at a time where you can.
- Where one step depends on another, do them one after the other, and look at each result before the next.
- A parameter that is not described as required may be left out; give those that the task speaks of, in its
  own words unless the description asks for a format.
When the task is done, write "finish conversation".
""",
    "step_user": "The functions, as JSON: {functions}. What happened so far: {history}\n",
    "nudge": "Do not ask anything; solve it by what is known.",
    "greeting": "What can I do for you today?",
    "user_travel": """\
You play a person who talks to an agent.

What you are and want: {instruction}

- Write one line at a time: what this person says next, in your own words and in this person's manner.
- Do not tell everything at once; tell what this step needs.
- Make nothing up. When you are asked for something that does not stand above, say that you do not know it.
- When you are asked to confirm something, decide by what stands above.
- When you want to fly there and back, say at the very start that you want to book a round trip.
- When you have all that you wanted, write 'finish conversation' on a line of its own.
""",
    "user_base": """\
You play a person who talks to an agent.

What you are and want: {instruction}

- Write one line at a time: what this person says next.
- Do not tell everything at once; but what this step needs, tell whole (of a reminder: title, content and
  time).
- Make nothing up: no dish, no name, nothing that does not stand above. Names above are full names.
- When you are asked whether there is anything else, make sure that all of the above is done; else go on with
  what is not.
- When you are asked which message to delete, choose as it says above.
- Do not offer help; answer the agent's questions by what stands above.
- When all is done, write 'finish conversation' on a line of its own.
""",
}
