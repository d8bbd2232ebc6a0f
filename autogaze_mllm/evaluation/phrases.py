"""Words by which replies commit to an option, in several languages: regular expressions, in lower case.

Text comes as `commitment.plain` makes it, so wide signs are narrow, and the ideographic full stop and comma are "." and
",".
"""

# ruff: noqa: RUF001  Cyrillic letters that look like Latin ones are meant

from __future__ import annotations

# Before a letter, in languages of Latin letters, where a letter may also be a word ("a", "e", "o").
SAYS_LATIN = (
    # English
    r"(?:answer|option|choice)\s*(?:is|would\s+be|should\s+be|must\s+be|has\s+to\s+be|will\s+be)",
    r"(?:answer|option|choice|solution|selection|pick|prediction|conclusion|verdict)\s*(?::|=|\||->|=>|→|[-–—](?=\s))",
    r"(?:i|we)(?:'ll|'d|\s+will|\s+would)?\s+(?:choose|pick|select|chose|answer|go\s+with|opt\s+for)(?:\s+with)?",
    r"correct\s*:",
    # German, Dutch, Swedish, Danish and Norwegian
    r"(?:antwort|lösung|option)\s*(?:ist|lautet|wäre|:)",
    r"richtig\s+(?:ist|wäre)",
    r"(?:antwoord|optie)\s*(?:is|luidt|:)",
    r"svare?t?\s*(?:är|er|:)",
    # French, Spanish, Portuguese, Italian, Romanian
    r"réponse(?:\s+(?:correcte|exacte|juste))?\s*(?:est|serait|:)",
    r"(?:respuesta|opción)(?:\s+correcta)?\s*(?:es|sería|:)",
    r"(?:resposta|alternativa|opção)(?:\s+(?:correta|certa))?\s*(?:é|seria|:)",
    r"(?:risposta|opzione)(?:\s+(?:corretta|giusta|esatta))?\s*(?:è|sarebbe|:)",
    r"răspunsul(?:\s+corect)?\s*(?:este|e|:)",
    # Polish, Czech, Turkish, Indonesian, Vietnamese
    r"odpowied[źz](?:\s+(?:prawidłowa|poprawna))?\s*(?:to|brzmi|:)",
    r"odpověď\s*(?:je|:)",
    r"cevap\s*[:=]?",
    r"jawaban(?:nya)?(?:\s+yang\s+(?:benar|tepat))?\s*(?:adalah|ialah|:)",
    r"đáp\s+án(?:\s+đúng)?\s*(?:là|:)",
)
# Between such words and the letter: an article, or the noun again.
BETWEEN = (
    r"(?:\s*(?:option|choice|answer|letter|number|die\s+option|antwort|optie|l'option|la\s+réponse|la\s+opción|opción"
    r"|a\s+opção|a\s+alternativa|a\s+letra|opção|alternativa|letra|l'opzione|opzione|la|the|opcja|seçenek|opsi|pilihan"
    r"|phương\s+án|вариант|选项|選項|選択肢)(?:\s*:)?\s+|\s*:)*\s*"
)
# Before a letter, in other writings: whatever Latin letter follows is meant as one.
SAYS_OTHER = (
    # Chinese
    r"答案\s*(?:应该是|應該是|应为|應為|是|为|為|选|選|:|=)\s*(?:选项|選項)?",
    r"(?:应|應|故|因此|所以|我)?\s*(?:选择|選擇|应选|選|选)\s*(?:选项|選項)?\s*:?",
    r"正确(?:的)?(?:选项|答案)\s*(?:是|为|:)",
    # Japanese
    r"(?:正解|答え|回答|解答)\s*(?:は|:|=)\s*(?:選択肢)?",
    # Korean
    r"(?:정답|답변|답)\s*(?:은|는|이|:|=)",
    # Russian, Ukrainian, Bulgarian
    r"(?:ответ\w*|відповідь|отговор\w*)\s*(?::|-|–|—|=|это|е)?\s*(?:вариант)?",
    # Arabic, Hindi, Thai
    r"(?:الإجابة|الجواب)(?:\s+(?:الصحيحة|الصحيح))?\s*(?:هي|هو|:)?\s*(?:الخيار)?",
    r"उत्तर\s*(?:है|:)?\s*(?:विकल्प)?",
    r"คำตอบ(?:ที่ถูกต้อง)?\s*(?:คือ|:)\s*(?:ข้อ)?",
)
# Behind a bare letter: it stands for the option and is not part of a sentence ("A because", not "A man").
REASONS = (
    r"because|since|as|due|given|(?:is|are)\s+(?:the\s+)?(?:correct|right|best|answer)",
    r"weil|denn|da|(?:ist|wäre)\s+(?:die\s+)?(?:richtig|korrekt)\w*|omdat|want|eftersom|fordi",
    r"parce|car|puisque|porque|pues|pois|perché|poiché|ponieważ|karena|vì|çünkü",
    r"потому|так\s+как",
)
# Behind a letter, in such writings: it is the one.
RIGHT_OTHER = r"\s*(?:选项|選項)?\s*(?:是|は|が|은|는|이|가)?\s*(?:最)?(?:正确|正確|正解|정답)"
# Behind a letter: it is not the one.
DENIED = (
    r"\s*(?:(?:is|are|was|would\s+be|seems|looks|ist|est|es|é|è|является|是|は|은|는)\s*)?"
    r"(?:not\b|n't\b|isn't|wasn't|cannot|can't|doesn't|does\s+not|wrong|incorrect|false|ruled\s+out|excluded|impossible"
    r"|nicht\b|falsch|n'est|pas\b|fausse|incorrect\w*|falsa|no\s+es|errad\w*|sbagliat\w*|неверн\w*|не\b"
    r"|不|错|錯|排除|間違|違|아니|틀)"
)
# Before a letter, or before what says it: the same.
DENIES = (
    r"(?:\b(?:not|never|isn't|wasn't|without|except|unlike|than|instead\s+of|neither|nor|eliminat\w+|exclud\w+"
    r"|rule[sd]?\s+out|reject\w*|nicht|keine?|non|pas|no|não|не)|不是|并非|不选|排除|除了)"
    r"(?:\s+(?:the|option|choice|answer|die|la|el|a))*\s*[(\[]?$"
)
DOUBTS = (
    r"\b(?:if|whether|unless|suppose|supposing|assum\w+|imagine|think\s+that|thought|falls|ob|wenn|si|se|если|ли)\b"
    r"[^.!?;\n]{0,24}$|(?:如果|假如|假设|もし|만약)[^.!?;\n]{0,12}$"
)
# Between two letters: both are named.
AND_LATIN = r"and|or|und|oder|et|ou|y|o|e|i|lub|en|of|og|och|ve|veya|dan|atau|và|hoặc|и|или"
AND_OTHER = r"和|或者?|与|及|と|か|와|과|및|또는|,|/|&|\+"
# Before a letter that ends a reply.
SO = (
    r"\b(?:so|therefore|thus|hence|consequently|daher|also|deshalb|donc|ainsi|por\s+tanto|portanto|quindi)\b"
    r"|因此|所以|よって|따라서"
)
FINAL = (
    r"(?:final|my|overall|letzte|endgültige|finale|définitive|最终|最終|최종)"
    r"\s*(?:answer|choice|antwort|réponse|答案|回答|답)"
)
