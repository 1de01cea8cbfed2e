"""Sample texts of several kinds that every machine has: source code, numbers, other scripts."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

from tinylib.corpus import in_validation
from tinylib.tokenizer import batch_texts

ARTICLE_1: dict[str, str] = {
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
              "begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι "
             "με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью "
               "и должны поступать в отношении друг друга в духе братства.",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון, לפיכך חובה עליהם "
              "לנהוג איש ברעהו ברוח של אחווה.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل بعضهم "
              "بعضًا بروح الإخاء.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और "
             "अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
                "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 "
              "이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
}
"""Article 1 of the Universal Declaration of Human Rights, by language.

Source: United Nations, General Assembly resolution 217 A (III) of 1948, in the translations of the UN's human rights
office, which anyone may reproduce.
"""


def kinds(english: Iterable[str] = ()) -> dict[str, list[str]]:
    """Texts by kind, about 4 million characters of each at most: English (if given), code, other scripts, numbers.

    Code is the files of Python's standard library that the built-in corpora hold out; none where they are zipped.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = (file.read_text(encoding="utf-8") for file in files if in_validation(file.stem))
    found = {"English": english, "code": code, "other scripts": ARTICLE_1.values(), "numbers": numbers()}
    texts = {kind: next(batch_texts(some), []) for kind, some in found.items()}
    return {kind: some for kind, some in texts.items() if some}


def numbers() -> list[str]:
    """Numbers as in tables: squares, powers, thousands with commas, roots, dates; all computed.

    >>> [line[:21] for line in numbers()]
    ['0 1 4 9 16 25 36 49 6', '1 2 4 8 16 32 64 128 ', '7,777\\n15,554\\n23,331\\n3', '0.000000 1.000000 1.4', '\
2000-01-01\\n2000-04-07']
    """
    days = [date(2000, 1, 1) + timedelta(days=97 * count) for count in range(200)]
    return [" ".join(str(count**2) for count in range(1_000)), " ".join(str(2**power) for power in range(100)),
            "\n".join(f"{7_777 * count:,}" for count in range(1, 500)),
            " ".join(f"{math.sqrt(count):.6f}" for count in range(500)), "\n".join(day.isoformat() for day in days)]
