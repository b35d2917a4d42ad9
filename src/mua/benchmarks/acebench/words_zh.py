"""Chinese wording of our own: what the functions answer, and the prompts.

Used where upstream's repository is not installed in full; `words.load` takes upstream's otherwise. Within a
function, answers stand in the order in which upstream's function gives them: that is how the two are matched.
"""

TEXTS = {
    "turn_on_wifi.done": "Wi-Fi 现已开启",
    "login_device.done": "设备现已登录",
    "send_message.logged_out": "设备尚未登录，不能发送短信",
    "send_message.no_wifi": "Wi-Fi 未开启，不能发送短信",
    "send_message.full": "收件箱已满，请询问用户要删除哪条短信。",
    "send_message.nobody": "没有这个发送者或接收者",
    "send_message.done": "给{}的短信已发出。",
    "delete_message.logged_out": "设备尚未登录，不能删除短信",
    "delete_message.missing": "没有这个编号的短信",
    "delete_message.done": "{}号短信已删除。",
    "view_messages_between_users.logged_out": "设备尚未登录，不能查看短信",
    "view_messages_between_users.no_sender": "没有这个发送者",
    "view_messages_between_users.no_receiver": "没有这个接收者",
    "view_messages_between_users.none": "两人之间没有短信",
    "search_messages.nobody": "没有这个用户",
    "search_messages.none": "没有短信包含这个关键词",
    "get_all_message_times_with_ids.logged_out": "设备尚未登录，不能查看短信时间",
    "get_latest_message_id.logged_out": "设备尚未登录，不能查找最新的短信",
    "get_latest_message_id.empty": "没有任何短信",
    "get_latest_message_id.done": "最新短信的编号是{}",
    "get_earliest_message_id.logged_out": "设备尚未登录，不能查找最早的短信",
    "get_earliest_message_id.empty": "没有任何短信",
    "get_earliest_message_id.done": "最早短信的编号是{}",
    "view_reminder_by_title.logged_out": "设备尚未登录，不能查看提醒",
    "view_reminder_by_title.none": "没有标题为“{}”的提醒",
    "add_reminder.logged_out": "设备尚未登录，不能添加提醒",
    "add_reminder.full": "提醒数量已达上限，不能再添加",
    "add_reminder.done": "提醒“{}”已添加",
    "delete_reminder.logged_out": "设备尚未登录，不能删除提醒",
    "delete_reminder.missing": "没有这个编号的提醒",
    "delete_reminder.done": "{}号提醒已删除",
    "view_all_reminders.empty": "目前没有提醒",
    "mark_as_notified.missing": "没有这个编号的提醒",
    "mark_as_notified.done": "{}号提醒已记为通知过",
    "search_reminders.none": "没有提醒包含这个关键词",
    "login_food_platform.no_wifi": "Wi-Fi 未开启，不能登录",
    "login_food_platform.nobody": "没有这个用户",
    "login_food_platform.password": "密码不对",
    "login_food_platform.already": "{}已处于登录状态",
    "login_food_platform.done": "{}登录完成",
    "view_logged_in_users.none": "外卖平台上没有人登录",
    "add_food_delivery_order.logged_out": "{}还没有登录外卖平台",
    "add_food_delivery_order.no_merchant": "没有这个商家",
    "add_food_delivery_order.quantity": "数量{}不能用于商品{}",
    "add_food_delivery_order.no_product": "没有商品{}，它不在{}的菜单上",
    "add_food_delivery_order.balance": "余额不够，订单未提交",
    "add_food_delivery_order.done": "已在{}下单，共{}元",
    "get_products.missing": "没有名为“{}”的商家",
    "view_orders.none": "该用户还没有订单",
    "search_orders.none": "没有订单包含这个关键词",
    "get_flight_details.none": "没有合适的直飞航班",
    "get_user_details.wrong": "用户ID或密码有误",
    "get_reservation_details.which": "需要预订号或用户ID",
    "authenticate_user.wrong": "用户ID或密码有误",
    "find_transfer_flights.none": "没有合适的中转组合。",
    "reserve_flight.login": "用户ID或密码有误。",
    "reserve_flight.payment": "只能用cash或bank支付",
    "reserve_flight.cash": "cash余额不够，可以换一种支付方式",
    "reserve_flight.bank": "bank余额不够，可以换一种支付方式",
    "reserve_flight.done": "已预订，预订号{}，共{}元，含行李费。",
    "modify_flight.no_reservation": "该用户没有这个预订。",
    "modify_flight.no_flight": "查不到这个预订的航班。",
    "modify_flight.nobody": "没有这个用户。",
    "modify_flight.flight": "已改签航班。",
    "modify_flight.wrong_flight": "未能改签：这条航线上没有这个航班号。",
    "modify_flight.cabin": "已更换舱位，支付{}。",
    "modify_flight.poor": "余额不够支付舱位差价。",
    "modify_flight.refund": "已更换舱位，退还{}。",
    "modify_flight.bags": "已添加行李，支付{}。",
    "modify_flight.bags_poor": "余额不够支付行李费。",
    "modify_flight.nothing": "已修改，不需付费。",
    "cancel_reservation.nobody": "没有这个用户。",
    "cancel_reservation.no_reservation": "该用户没有这个预订。",
    "cancel_reservation.no_flight": "查不到这个预订的航班。",
    "cancel_reservation.used": "航班已起飞，不能取消。",
    "cancel_reservation.airline": "航空公司取消了航班，已全额退还{}元。",
    "cancel_reservation.free": "离起飞还有一天以上，取消免费，已退还{}元。",
    "cancel_reservation.late": "离起飞不到一天，收取{}元手续费，退还{}元。",
}

_CALLS = """\
每一步要么是调用，要么是话语，不可两者兼有。调用写作[名称(参数='值', 另一参数=2)]，\
多个调用写作[名称(...), 名称(...)]，方括号前后不要有任何内容：不要解释，不要代码块，不要结果。"""

PROMPTS = {
    "turn_system": f"""\
你是三方对话中的agent：user是用户，agent是你，execution执行你的调用并报告结果。下面会给出可用的函数和到目前为止的对话，请写出agent的下一步。
- 调用所需的信息齐全时，就进行调用。{_CALLS}
- 没有说明为必填的参数可以省略；用户提到的参数要填上，除非说明规定了格式，否则用用户的原话。
- 信息不全时，向用户询问，绝不替用户回答。

你的工作规则如下：
""",
    "turn_user": "可用的函数：\n{functions}\n\n到目前为止的对话：\n{history}",
    "travel": """\
现在是北京时间2024年7月15日8点。你在航空公司工作，负责预订、更改和取消航班。
- 在预订、更改或取消之前，先说清楚要做什么，等用户明确答复“是”再做；同一件事不要问两遍。
- 只说用户或函数告诉过你的内容，不发表意见。规则不允许的要求一律拒绝；只有超出能力的事才转人工。
- 每次只用一种函数；同一种函数可以同时调用几次。
预订：先取得用户ID和密码，再问出发地和目的地；先查航班，再预订。往返要订两次。没有合适的直飞时，按用户说的城市查中转的两段，两段都要订，可以在同一步完成。\
要问清用cash还是bank支付。免费行李件数（经济舱/商务舱）：普通会员1/2，银卡2/3，金卡3/3；每多一件50元。
更改：先取得用户ID和密码，可用用户ID查预订。新航班必须在同一航线上，航班号从航班中查得。换舱位要补差价或退差价，同一预订的各航段舱位必须一致。\
行李只能加不能减。航班有变时，要问支付或退款方式。函数不检查这些规则，由你检查。
取消：先取得用户ID、预订号和原因（计划有变、航空公司取消、其他）。预订后一天内、航空公司取消时、以及商务舱，都可以取消；其余情况下，起飞前一天内取消经济舱扣票价的两成。\
任何一段已飞过的行程不能取消，转人工。钱退回用户账户。
补偿：只给投诉并提出要求的银卡、金卡或商务舱旅客：航班取消每人200元；航班延误且改签或取消的每人100元。不要主动提出。
全部完成后，写“finish conversation”。""",
    "base": """\
现在是北京时间2024年6月11日16点。你是手机上的助手，负责发短信、记提醒、点外卖。
- 只说用户或函数告诉过你的内容，不发表意见。规则不允许的要求一律拒绝。
- 每次只用一种函数；同一种函数可以同时调用几次。
- 信息不全或调用失败时，询问用户。名字就是全名。
发短信：先知道发送者和接收者。内存满了，要问用户删除哪条短信。
看短信：先用login_device()登录设备，并知道发送者和接收者。看过之后，问要不要记成提醒、要不要回复；短信谈到外卖时，问要不要照着点。
提醒：先知道标题和内容；没有说明时，时间就是现在。内容若是某条短信，先看那条短信。看过提醒后，问要不要完成其中的事。
外卖：先取得账号和密码，用login_food_platform()登录。缺少商家、商品或数量时要问。不同商家分开下单。余额不够时，告诉用户并问要不要改订单。
把结果告诉用户，不要重复已做过的调用。全部完成后，写“finish conversation”。""",
    "step_system": f"""\
你独自用函数调用完成一项任务：user是提出任务的人，agent是你，execution执行你的调用并报告结果。下面会给出可用的函数、任务和到目前为止的结果，请写出下一步。
- {_CALLS}尽量一次只做一个调用。
- 前后有依赖的步骤要依次进行，看过结果再走下一步。
- 没有说明为必填的参数可以省略；任务提到的参数要填上，除非说明规定了格式，否则用任务的原话。
任务完成后，写“finish conversation”。
""",
    "step_user": "可用的函数（JSON）：{functions}。到目前为止：{history}\n",
    "nudge": "不要提问，请用已知的条件解决。",
    "greeting": "今天能帮您做些什么？",
    "user_travel": """\
请扮演一个与agent对话的人。

你的身份和需求：{instruction}

- 每次只写一行：这个人接下来要说的话，用自己的话，符合这个人的性格。
- 不要一次全说出来，只说这一步需要的。
- 不要编造。被问到上面没有的内容，就说不知道。
- 被要求确认时，按上面的内容决定。
- 如果要往返，一开始就说明要预订往返航班。
- 需求都满足后，单独一行写 'finish conversation'。
""",
    "user_base": """\
请扮演一个与agent对话的人。

你的身份和需求：{instruction}

- 每次只写一行：这个人接下来要说的话。
- 不要一次全说出来；但这一步需要的要说完整（例如提醒的标题、内容和时间）。
- 不要编造上面没有的菜品、名字或其他内容。上面的名字就是全名。
- 被问到还需要什么时，先确认上面的事都做完了，没做完就接着提出。
- 被问到删除哪条短信时，按上面的要求选择。
- 不要主动帮忙，按上面的内容回答agent的问题。
- 全部完成后，单独一行写 'finish conversation'。
""",
}
