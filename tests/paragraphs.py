"""A paragraph of our own in each of seventeen languages: nothing that anything was fitted on."""

# ruff: noqa: E501, RUF001 - letters look alike, and wide ones count twice

PROSE = {
    "English": "We asked forty students to read the same short story twice, once in the morning and once late at night. Most of "
    "them remembered the names, but hardly anyone could say in which order the three letters had arrived.",
    "German": "Im Herbst haben wir die alten Messgeräte aus dem Keller geholt und gereinigt. Zwei davon zeigten noch richtige "
    "Werte, die übrigen mussten wir neu eichen, bevor der Versuch beginnen konnte.",
    "French": "Le gardien du phare notait chaque soir la direction du vent et la hauteur des vagues. Après sa mort, sa fille a "
    "trouvé quarante cahiers remplis d'une écriture très fine, presque illisible.",
    "Spanish": "La panadería de la esquina abre antes del amanecer, y los domingos hay una cola que llega hasta la plaza. Mi abuela "
    "decía que el secreto no estaba en la harina, sino en la paciencia.",
    "Italian": "Il treno si è fermato in mezzo alla campagna senza alcuna spiegazione. Dopo un'ora i passeggeri hanno cominciato a "
    "parlare tra loro, e qualcuno ha diviso il pane con gli altri.",
    "Portuguese": "Os pescadores voltaram cedo porque o mar estava agitado demais. À tarde consertaram as redes e contaram "
    "histórias de peixes que ninguém jamais conseguiu ver.",
    "Dutch": "De fietsenmaker om de hoek repareert alles wat twee wielen heeft. Als hij het te druk heeft, hangt hij een briefje op "
    "de deur en gaat hij een uurtje wandelen langs het water.",
    "Polish": "Wczoraj wieczorem długo szukaliśmy klucza do piwnicy. Okazało się, że leżał na półce obok zegara, dokładnie tam, "
    "gdzie powinien być od samego początku.",
    "Turkish": "Köydeki eski okulun çatısı geçen kış çöktü. Komşular para toplayıp yenisini yaptı, şimdi çocuklar yeniden aynı "
    "sıralarda oturup pencereden dağları seyrediyor.",
    "Russian": "Каждую весну река выходила из берегов и заливала нижние улицы города. Старики помнили год, когда почту развозили на "
    "лодках, а школу закрыли почти на месяц.",
    "Greek": "Το μικρό καφενείο στο λιμάνι άνοιγε πάντα πριν βγει ο ήλιος. Οι ψαράδες έπιναν εκεί τον πρώτο τους καφέ και "
    "συζητούσαν για τον καιρό.",
    "Arabic": "كان جدي يزرع الزيتون على سفح الجبل منذ كان صغيرا. وكل خريف كنا نجتمع كلنا لنقطف الثمار ونحملها إلى المعصرة القديمة.",
    "Hebrew": "הספרייה הקטנה בקצה הרחוב פתוחה רק שלוש פעמים בשבוע. הספרנית זוכרת את שמות כל הילדים ויודעת איזה ספר מתאים לכל אחד.",
    "Hindi": "गाँव के पास एक पुराना कुआँ है जिसका पानी गर्मियों में भी ठंडा रहता है। शाम को लोग वहाँ बैठकर दिन भर की बातें करते हैं।",
    "Japanese": "駅前の古い喫茶店では、毎朝同じ時間に同じ人がコーヒーを飲んでいます。店の主人は何も聞かずに、いつもの席に新聞を置いておきます。",
    "Chinese": "山脚下的小村子里住着一位修钟表的老人。他说每一只钟都有自己的脾气，只要耐心听，就能知道哪里出了毛病。",
    "Korean": "비가 오는 날이면 할머니는 부침개를 부치고 온 가족이 마루에 모여 앉았다. 지붕에 떨어지는 빗소리를 들으며 옛날 이야기를 나누곤 했다.",
}
