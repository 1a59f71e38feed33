"""Thirty chat templates written for these tests, each using Jinja in the manner of a family of models."""
# ruff: noqa: RUF001

TEMPLATES = {
    "chatml": """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "chatml_with_default_system": """\
{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {{- '<|im_start|>' ~ m['role'] ~ '\\n' ~ (m['content'] or '') ~ '<|im_end|>' ~ '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
""",
    "llama2": """\
{%- if messages[0].role == 'system' %}
    {%- set turns = messages[1:] %}
    {%- set system = messages[0].content %}
{%- else %}
    {%- set turns = messages %}
    {%- set system = false %}
{%- endif %}
{%- for turn in turns %}
    {%- if loop.first and system is not false %}
        {%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + (turn.content or '') %}
    {%- else %}
        {%- set text = turn.content or '' %}
    {%- endif %}
    {%- if turn.role == 'user' %}
        {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {%- elif turn.role == 'assistant' %}
        {{- ' ' + text.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "llama3": """\
{{- bos_token }}
{%- for message in messages %}
    {%- set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {{- header + (message['content'] or '') | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "llama31_tools": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{ 'Environment: ipython\\n' }}{% endif %}
{{- 'Today is ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {{- 'Functions:\\n\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.tool_calls is defined %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif message.role in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {{- message.content | tojson if message.content is mapping else message.content }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
    "mistral_v1": """\
{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' \
}}{% elif message.role == 'assistant' %}{{ message.content + eos_token }}{% elif message.role == 'system' %}{{ \
message.content + '\\n\\n' }}{% endif %}{% endfor %}
""",
    "mistral_strict_turns": """\
{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in messages if message.role in ['user', 'assistant'] and not message.tool_calls %}
    {%- if (message.role == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ message.content ~ '[/INST]' }}
    {%- elif message.role == 'assistant' and message.content %}
        {{- ' ' ~ message.content | trim ~ eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "mistral_tools": """\
{{- bos_token }}
{%- set last_user = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == last_user %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.items() if key != 'return' %}
                    {%- if value is string %}
                        {{- '"' + key + '": "' + value + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + value | tojson }}
                    {%- endif %}
                    {{- ', ' if not loop.last else '' }}
                {%- endfor %}
                {{- '}}' }}
                {{- ', ' if not loop.last else ']' }}
            {%- endfor %}
            {{- '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- call.function | tojson | replace('}', '') + ', "id": "' + call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{ '<start_of_turn>' + role + '\\n' + (message['content'] or '') | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
""",
    "gemma3_system_in_first_turn": """\
{{- bos_token -}}
{%- set prefix = namespace(text='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix.text = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\\n' -}}
    {{- prefix.text if loop.first else '' -}}
    {%- if message.content is string -%}
        {{- message.content | trim -}}
    {%- elif message.content is iterable -%}
        {%- for item in message.content -%}
            {%- if item.type == 'text' -%}{{- item.text | trim -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
""",
    "qwen2_tools": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}{{ 'You are a helper.' }}{% endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nReturn json within <tool_call></tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) or \
(message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{ tool_call.name }}{{ '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' }}{{ message.content }}{{ '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    "qwen3_reasoning": """\
{%- set ns = namespace(searching=true, last_query=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""",
    "deepseek_v2": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}{{ 'Assistant: ' + (message['content'] or '') + eos_token }}
{%- elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
""",
    "deepseek_r1": """\
{%- set ns = namespace(is_first=false, system='', in_tool=false) -%}
{%- for message in messages %}{% if message.role == 'system' %}{% set ns.system = message.content %}{% endif %}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content or '' %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
    {%- elif message.role == 'tool' %}{{ '<｜tool▁output｜>' ~ message.content ~ '<｜tool▁output▁end｜>' }}
    {%- endif %}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
""",
    "phi3": """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{ '<|system|>\\n' + \
message['content'] + '<|end|>\\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + \
'<|end|>\\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + (message['content'] or '') + \
'<|end|>\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token \
}}{% endif %}
""",
    "phi4_mini": """\
{%- for message in messages -%}
    {%- if message['role'] == 'system' and tools is not none -%}
        {{- '<|system|>' + message['content'] + '<|tool|>' + tools | tojson + '<|/tool|>' + '<|end|>' -}}
    {%- else -%}
        {{- '<|' + message['role'] + '|>' + (message['content'] or '') + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- else -%}{{- eos_token -}}{%- endif -%}
""",
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + (message['content'] or '') + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    "command_r": """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set rest, system = messages[1:], messages[0].content %}
{%- else %}
    {%- set rest, system = messages, none %}
{%- endif %}
{%- if system is not none %}
    {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system + '<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- for message in rest %}
    {%- set content = message.content or '' %}
    {%- set speaker = {'user': 'USER', 'assistant': 'CHATBOT', 'tool': 'SYSTEM'}[message.role] | default('SYSTEM') %}
    {{- '<|START_OF_TURN_TOKEN|><|' ~ speaker ~ '_TOKEN|>' ~ content.strip() ~ '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}
""",
    "command_r_macros": """\
{%- macro to_type(spec) -%}
    {%- if spec.type == 'string' %}str{% elif spec.type == 'array' %}List[{{ to_type(spec['items']) }}]
    {%- elif spec.type == 'integer' %}int{% else %}Any{% endif -%}
{%- endmacro -%}
{%- macro signature(tool) -%}
    def {{ tool.name }}({% for name, spec in tool.parameters.properties.items() -%}
        {{ name }}: {{ to_type(spec) }}{% if not loop.last %}, {% endif %}
    {%- endfor %}):
        \"\"\"{{ tool.description }}\"\"\"
{%- endmacro -%}
{{ bos_token }}
{%- for tool in tools or [] %}
{{ signature(tool.function) | indent(2, first=true) }}
{%- endfor %}
{%- for message in messages %}
<|{{ message.role | upper }}|>{{ message.content | default('', true) | e }}
{%- endfor %}
{{ '<|CHATBOT|>' if add_generation_prompt }}
""",
    "vicuna": """\
{%- if messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] }}{% set messages = messages[1:] %}
{%- else -%}
A chat between a person and a program.
{%- endif -%}
{%- for message in messages -%}
{{ ' USER: ' + message.content if message.role == 'user' else ' ASSISTANT: ' ~ (message.content or '') ~ eos_token }}
{%- endfor -%}
{{ ' ASSISTANT:' if add_generation_prompt else '' }}
""",
    "alpaca": """\
{% for message in messages %}
{%- if message.role == 'system' -%}
{{ message.content }}

{% elif message.role == 'user' -%}
### Instruction:
{{ message.content }}

{% else -%}
### Response:
{{ message.content or '' }}{{ eos_token }}

{% endif %}
{%- endfor %}
{% if add_generation_prompt %}
### Response:
{% endif %}
""",
    "falcon": """\
{% for message in messages %}
{% if not loop.first %}{{ '\\n' }}{% endif %}
{{ message.role | capitalize }}: {{ message.content or '' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '\\nFalcon:' }}{% endif %}
""",
    "granite": """\
{%- set system = 'Knowledge ends in April 2024. Today is ' + strftime_now('%B %d, %Y') + '.' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=2) + '<|end_of_text|>\\n' }}
{%- endif %}
{%- if documents %}
    {{- '<|start_of_role|>documents<|end_of_role|>' }}
    {%- for document in documents %}{{ 'Document ' + loop.index0 | string + '\\n' + document.text }}{% endfor %}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + (message.content or '') + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}
""",
    "hermes_tools": """\
{%- macro json_to_python_type(spec) %}
{%- set basic = {'string': 'str', 'number': 'float', 'integer': 'int', 'boolean': 'bool'} %}
{%- if basic[spec.type] is defined %}{{ basic[spec.type] }}{% else %}{{ 'Any' }}{% endif %}
{%- endmacro %}
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\\nFunctions: <tools> ' }}
    {%- for tool in tools %}
        {%- set function = tool.function if tool.function is defined else tool %}
        {{- function.name + '(' }}
        {%- for name, spec in function.parameters.properties | items %}
            {{- name + ': ' + json_to_python_type(spec) }}
            {%- if name not in function.parameters.required %}{{ ' = None' }}{% endif %}
            {%- if not loop.last %}{{ ', ' }}{% endif %}
        {%- endfor %}
        {{- ')' ~ (' - ' ~ function.description if function.description) ~ '\\n' }}
    {%- endfor %}
    {{- '</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response><|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    "glm4": """\
[gMASK]<sop>
{%- if tools %}<|system|>
# Tools
{% for tool in tools %}
## {{ tool.function.name }}
{{ tool.function | tojson(ensure_ascii=False, indent=4) }}
{% endfor %}
{%- endif %}
{%- for message in messages %}<|{{ message.role if message.role != 'tool' else 'observation' }}|>
{{ (message.content or '').strip() }}
{%- if message.role == 'assistant' and message.thinking %}
<think>{{ message.thinking }}</think>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
    {{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking }}
{%- endif %}
""",
    "gpt_oss_channels": """\
{%- macro render_typescript(spec, depth=0) -%}
    {%- if spec.type == 'object' %}{
    {%- for name, inner in spec.properties | dictsort %}
{{ '  ' * (depth + 1) }}{{ name }}{{ '' if name in (spec.required or []) else '?' }}: \
{{- render_typescript(inner, depth + 1) }},
    {%- endfor %}
{{ '  ' * depth }}}
    {%- elif spec.enum is defined %}{{ spec.enum | map('tojson') | join(' | ') }}
    {%- elif spec.type == 'array' %}{{ render_typescript(spec['items'], depth) }}[]
    {%- else %}{{ {'integer': 'number'}.get(spec.type, spec.type) }}
    {%- endif %}
{%- endmacro -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}
{%- if tools %}
namespace functions {
{%- for tool in tools %}
type {{ tool.function.name }} = (_: {{ render_typescript(tool.function.parameters) }}) => any;
{%- endfor %}
}
{%- endif %}<|end|>
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.thinking is defined %}
        {{- '<|start|>assistant<|channel|>analysis<|message|>' ~ message.thinking ~ '<|end|>' }}
    {%- endif %}
    {{- '<|start|>' ~ message.role ~ '<|message|>' ~ message.content | default('', true) ~ '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
""",
    "smollm_generation_tag": """\
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- generation -%}
            {%- set marked = (message.content or '') + '<|im_end|>' -%}
            {{- marked -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""",
    "olmo_with_break": """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- if not loop.last %}
            {{- '<|assistant|>\\n' ~ (message.content or '') ~ eos_token ~ '\\n' }}
        {%- else %}
            {{- '<|assistant|>\\n' ~ (message.content or '') ~ eos_token }}
        {%- endif %}
    {%- else %}
        {{- '<|' ~ message.role ~ '|>\\n' ~ message.content ~ '\\n' }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{%- endfor %}
""",
    "nemotron_filters": """\
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') -%}
{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list -%}
<extra_id_0>System
{{ system | default('None', true) | replace('\\t', ' ') | wordcount }} words: {{ system | trim | truncate(40, True) }}
{% for turn in turns -%}
<extra_id_1>{{ turn.role | title }}
{{ turn.content | default('-', true) | trim }}
{% endfor -%}
{{ '<extra_id_1>Assistant\\n' if add_generation_prompt }}
{{- {'z': 1, 'a': [true, none, 1.5, '<&>é']} | tojson(sort_keys=true) }}
{{- {'k': '</script>'} | tojson(separators=(',', ':')) -}}
""",
    "jamba_whitespace": """\

  {# a comment, and lines that keep, or lose, their whitespace #}
{% set roles = ['system', 'user', 'assistant', 'tool'] %}
{% for message in messages %}
    {% if message.role in roles %}
  [{{ roles.index(message.role) }}]{{ ' ' }}
	{{ message.content or "" }}
    {% endif %}

{% endfor %}
    {%- if add_generation_prompt +%}
  >>
    {% endif -%}

   end
""",
}
"""By name; `bos_token` and `eos_token` are `<s>` and `</s>`."""
